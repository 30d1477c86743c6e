"""Pages in Airflow's web interface."""
