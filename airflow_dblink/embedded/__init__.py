"""PostgreSQL servers and an Airflow of our own, for the demo, the tests and the benchmarks."""
