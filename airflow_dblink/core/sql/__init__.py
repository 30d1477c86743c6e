"""SQL of the core, one file per topic; read by :mod:`airflow_dblink.core.sql.named`."""
