"""Errors raised to Airflow; those of PostgreSQL are in :mod:`airflow_dblink.core.errors`."""

from __future__ import annotations

from airflow.sdk.exceptions import AirflowException, AirflowFailException


class DblinkTaskKilledError(AirflowException):
    """The task was told to stop. It never succeeds then, whatever the server has done before."""


class DblinkJobError(AirflowFailException):
    """The job that a sensor waits for has failed, was cancelled or lost; no retry of the sensor helps.

    Sensors treat its base class alike in all modes: ``soft_fail`` and ``never_fail`` skip the task.
    """
