"""Queues for Airflow's ``MessageQueueTrigger``."""
