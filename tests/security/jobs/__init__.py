"""Attacks on remote jobs by other roles of the same database, and by users of Airflow."""
