"""PostgreSQL only: links, transactions and COPY on psycopg 3. Nothing here imports Airflow."""
