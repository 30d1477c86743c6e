"""DblinkJobSensor: wait for the end of a remote job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.sensor import PokeReturnValue

from airflow_dblink.core.errors import DblinkError, TransientError
from airflow_dblink.core.jobs.job import Job, JobHandle
from airflow_dblink.exceptions import DblinkJobError
from airflow_dblink.links.job import DblinkJobLink, page_note
from airflow_dblink.operators.common.handles import TakesHandle
from airflow_dblink.sensors.base import DblinkBaseSensor
from airflow_dblink.triggers.job import DblinkJobTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class DblinkJobSensor(DblinkBaseSensor, TakesHandle):
    """Wait until a job has succeeded.

    If the job has failed, was cancelled or lost, the sensor fails at once and for good: no retry of the
    sensor can change that, so clear the task that sends the job. ``soft_fail``, ``never_fail`` and
    ``timeout`` are Airflow's, and mean the same in all modes. The sensor waits for a server that can't be
    reached.

    The sensor only watches: the job goes on when the sensor is killed or times out.

    :param handle: return value of :class:`~airflow_dblink.operators.jobs.DblinkSendQueryOperator`, or a job's
        id with *conn_id*. (templated)
    :param conn_id: as in :class:`~airflow_dblink.operators.jobs.DblinkGetResultOperator`. (templated)
    :param job_schema: as in :class:`~airflow_dblink.operators.jobs.DblinkGetResultOperator`.
    :param deferrable: wait in the triggerer, after one poke; by default Airflow's
        ``[operators] default_deferrable``.
    :param cancel_on_kill: cancel the job when a user kills the deferred sensor, marks or clears it.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    :param kwargs: arguments of :class:`~airflow.sdk.BaseSensorOperator`. ``poke_interval``: seconds after
        which the job's row is read without a notification. If a session can listen to the server, it notifies
        the triggerer at once.

    :returns: (XCom) the job's handle (``conn_id``, ``job_id``, ``schema``), ``command_tag``, ``row_count``.
    :raises DblinkJobError: if the job has failed (with the server's SQLSTATE, message, detail, hint and
        context), was cancelled or lost; if there is no such job, or the connection can't be used.
    :raises AirflowSensorTimeout: after ``timeout``.
    """

    template_fields: Sequence[str] = ("handle", "conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"handle": "json"}
    operator_extra_links = (DblinkJobLink(),)
    ui_color = "#e0dcf3"
    failure = DblinkJobError

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job_handle: JobHandle | None = None  # for the link

    def _trigger(self) -> DblinkJobTrigger:
        handle = self._read()
        return DblinkJobTrigger(
            conn_id=handle.conn_id,
            job_id=handle.job_id,
            schema=handle.schema,
            poll_interval=self.poke_interval,
            cancel_on_kill=self.cancel_on_kill,
            password_required=self.password_required,
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """Return whether the job has succeeded.

        :raises DblinkJobError: if it never will.
        """
        handle = self._read()
        try:
            with self._hook(handle.conn_id) as hook:
                job = hook.job(handle)
        except TransientError as error:
            self.log.warning("%s", error)
            return PokeReturnValue(is_done=False)
        except DblinkError as error:
            raise DblinkJobError(str(error)) from None
        if not job.has_ended:
            page = page_note(self.dag_id, handle)
            self.log.info("Job %s on %s: %s%s", job.id, handle.conn_id, job.state, page)
            return PokeReturnValue(is_done=False)
        return PokeReturnValue(is_done=True, xcom_value=self._succeeded(handle, job))

    def _succeeded(self, handle: JobHandle, job: Job) -> dict[str, Any]:
        if (error := job.error(handle.conn_id)) is not None:
            raise DblinkJobError(str(error))
        return {**handle.as_dict(), "command_tag": job.command_tag, "row_count": job.row_count}

    def _read(self) -> JobHandle:
        try:
            self.job_handle = self._read_handle()
        except DblinkError as error:
            raise DblinkJobError(str(error)) from None
        return self.job_handle
