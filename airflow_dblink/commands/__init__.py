"""What the commands of ``airflow dblink`` do; :mod:`airflow_dblink.cli` lists them."""
