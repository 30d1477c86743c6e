"""PostgreSQL's dblink as an Apache Airflow provider."""

__version__ = "0.1.0"
