"""Errors raised to Airflow; those of PostgreSQL are in :mod:`airflow_dblink.core.errors`."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException


class DblinkTaskKilledError(AirflowException):
    """The task was told to stop. Never a success, whatever the server managed to do before."""
