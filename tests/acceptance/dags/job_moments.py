"""Jobs whose senders and waiters die at exactly named moments of their first try; the next tries live.

Every effect is a row of ``effect`` in the warehouse. The table has no key, so work done twice has two rows.
"""

import threading
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from airflow.sdk import DAG, Param, task

from airflow_dblink.core.jobs import call
from airflow_dblink.operators.common import base
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.jobs import (
    DblinkGetResultOperator,
    DblinkJobOperator,
    DblinkSendQueryOperator,
)
from airflow_dblink.sensors.job import DblinkJobSensor
from tests.acceptance.dying import GATE, Store, die

vars(base)["_STATE_ANSWER_S"] = 3.0  # the API may be slow; 2 s are left to cancel

# Tests hold the gate shut to keep jobs running.
LASTS = f"pg_sleep(%(seconds)s), pg_advisory_xact_lock_shared({GATE})"
EFFECT = f"INSERT INTO effect (task) SELECT %(task)s FROM {LASTS}"  # noqa: S608


class DyingCall(call.Call):
    """Dies once the row is inserted, or once CALL is on its way."""

    moment = ""

    def __init__(self, *args: Any) -> None:
        if self.moment == "row_inserted":
            die()
        super().__init__(*args)

    def wait_until_claimed(self) -> None:
        if self.moment == "call_sent":
            self._connection.pgconn.flush()
            die()
        super().wait_until_claimed()


class Moment(NamedTuple):
    """The moment at which the first try dies: the process, and the write, the call or the seconds in it."""

    process: str = "nowhere"
    write: str = ""
    nth: int = 1
    call: str = ""
    seconds: float | None = None


MOMENTS = {
    "before_id_is_stored": Moment("execute", "before", 1),
    "after_id_is_stored": Moment("execute", "after", 1),
    "after_row_is_inserted": Moment("execute", call="row_inserted"),
    "after_call_is_sent": Moment("execute", call="call_sent"),
    "when_seen_running": Moment("execute", "before", 2),
    "while_running": Moment("execute", seconds=1.5),
    "after_commit": Moment("end", "before", 1),
    "after_all": Moment("end", "after", 1),
    "never": Moment(),
}


class FirstTryDies:
    """Mixin that ends the first try at ``moment``, a name in MOMENTS."""

    moment = "never"

    def execute(self, context: Any) -> Any:
        self._arm(context, "execute")
        return super().execute(context)  # type: ignore[misc] # a mixin

    def execute_complete(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        self._arm(context, "end")
        return super().execute_complete(context, *args, **kwargs)  # type: ignore[misc] # a mixin

    def _arm(self, context: Any, process: str) -> None:
        moment = MOMENTS[self.moment]
        nth, where = moment.nth, moment.process
        if where == "end" and not getattr(self, "deferrable", False):
            # Without a deferral one process makes all writes; the first one after the job's end is its third.
            nth, where = 3, "execute"
        if context["ti"].try_number != 1 or where != process:
            return
        if moment.write:
            context["task_state_store"] = Store(context["task_state_store"], moment.write, nth, die)
        elif moment.seconds is not None:
            threading.Timer(moment.seconds, die).start()
        elif moment.call:
            DyingCall.moment = moment.call
            vars(call)["Call"] = DyingCall  # in this process alone


class Job(FirstTryDies, DblinkJobOperator):
    template_fields = (*DblinkJobOperator.template_fields, "moment")

    def __init__(self, *, moment: str = "never", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moment = moment


class Send(FirstTryDies, DblinkSendQueryOperator):
    template_fields = (*DblinkSendQueryOperator.template_fields, "moment")

    def __init__(self, *, moment: str = "never", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.moment = moment


MODES: dict[str, dict[str, Any]] = {
    "poke": {"mode": "poke", "poke_interval": 1},
    # Longer than a task takes to end: Airflow fails a task that is queued again before it has heard of that.
    "reschedule": {"mode": "reschedule", "poke_interval": 10},
    "deferrable": {"deferrable": True, "poke_interval": 1},
}
KILLED: dict[str, dict[str, Any]] = {
    "waiting": {"deferrable": False},
    "deferred": {"deferrable": True},
    "kept": {"deferrable": True, "cancel_on_kill": False},
}

COMMON: Mapping[str, Any] = {
    "conn_id": "warehouse_db",
    "sql": EFFECT,
    "retries": 3,
    "retry_delay": timedelta(0),
    "grace_period": timedelta(seconds=0.2),
    "poll_interval": 2.0,
}

with DAG("job_moments", schedule=None):
    for name in MOMENTS:
        for deferrable in (False, True):
            label = f"{'deferred' if deferrable else 'waiting'}_{name}"
            Job(
                task_id=label,
                moment=name,
                deferrable=deferrable,
                # A task that dies after its deferral must have deferred before the job's end.
                parameters={
                    "task": label,
                    "seconds": 15 if deferrable else 3,
                },
                # A task that dies while the job runs must not have deferred by then.
                **{**COMMON, "grace_period": timedelta(seconds=2.5 if name == "while_running" else 0.2)},
            )

AGAIN: dict[str, Any] = {"retries": 2, "retry_delay": timedelta(0)}

with DAG("send_moments", schedule=None):
    for name in MOMENTS:
        if MOMENTS[name].process == "end":
            continue
        sent = Send(
            task_id=f"send_{name}",
            moment=name,
            conn_id="warehouse_db",
            sql=EFFECT,
            parameters={"task": f"send_{name}", "seconds": 2},
            retries=2,
            retry_delay=timedelta(0),
        )
        DblinkJobSensor(
            task_id=f"sense_{name}", handle=sent.output, deferrable=True, poke_interval=2, **AGAIN
        )

# The soak command and the tests of infrastructure run this Dag; its params list the tasks.
with DAG("job_batch", schedule=None, params={"tasks": Param([], type="array")}):

    @task
    def tasks(**context: Any) -> list[dict[str, Any]]:
        return [
            {
                "moment": one["moment"],
                "deferrable": one["deferrable"],
                "parameters": {"task": one["name"], "seconds": one["seconds"]},
            }
            for one in context["params"]["tasks"]
        ]

    Job.partial(task_id="job", **COMMON).expand_kwargs(tasks())

SLEEP = f"INSERT INTO effect (task) VALUES (%(task)s); SELECT FROM {LASTS}"  # noqa: S608

with DAG("job_kill", schedule=None, params={"seconds": Param(60, type="number")}):
    for name, options in KILLED.items():
        DblinkJobOperator(
            task_id=name,
            conn_id="warehouse_db",
            sql=SLEEP,
            parameters={"task": name, "seconds": "{{ params.seconds }}"},
            grace_period=timedelta(0),
            poll_interval=2.0,
            **options,
        )

with DAG("job_deferred", schedule=None, params={"seconds": Param(60, type="number")}):
    DblinkJobOperator(
        task_id="deferred",
        conn_id="warehouse_db",
        sql=SLEEP,
        parameters={"task": "deferred", "seconds": "{{ params.seconds }}"},
        grace_period=timedelta(0),
        poll_interval=2.0,
        deferrable=True,
    )

with DAG("job_timeout", schedule=None):
    for deferrable in (False, True):
        DblinkJobOperator(
            task_id="deferred" if deferrable else "waiting",
            conn_id="warehouse_db",
            sql=SLEEP,
            parameters={"task": "timeout", "seconds": 120},
            deferrable=deferrable,
            execution_timeout=timedelta(seconds=20),
            grace_period=timedelta(0),
        )

with DAG("job_result", schedule=None):
    numbers = DblinkSendQueryOperator(
        task_id="send",
        conn_id="warehouse_db",
        sql="SELECT n, 'row ' || n AS label FROM generate_series(1, 2000) AS n ORDER BY n DESC",
        keep_result=True,
    )
    sensed = [
        DblinkJobSensor(task_id=f"sense_{mode}", handle=numbers.output, **options)
        for mode, options in MODES.items()
    ]
    load = DblinkGetResultOperator(
        task_id="load",
        handle="{{ ti.xcom_pull('send') }}",
        conn_id="warehouse_db",
        destination_conn_id="source_db",
        destination_table="numbers",
        mode="create",
    )
    few = DblinkJobOperator(
        task_id="few",
        conn_id="warehouse_db",
        sql="SELECT 1 AS one, NULL::text AS nothing",
        max_xcom_rows=10,
        deferrable=True,
    )
    adopted = DblinkExecOperator(
        task_id="exec",
        conn_id="warehouse_db",
        sql="INSERT INTO effect (task) VALUES ('exec')",
        deferrable=True,
    )
    sensed >> load

# Airflow fails a task that is resumed before the scheduler has heard of its deferral.
OVER = {mode: 10 if mode == "deferrable" else 3 for mode in MODES}

with DAG("job_sensor_fails", schedule=None):
    failing = DblinkSendQueryOperator(task_id="send", conn_id="warehouse_db", sql="SELECT 1/0")
    for mode, options in MODES.items():
        DblinkJobSensor(task_id=f"fail_{mode}", handle=failing.output, retries=2, **options)
        DblinkJobSensor(task_id=f"soft_{mode}", handle=failing.output, soft_fail=True, **options)
        DblinkJobSensor(task_id=f"never_{mode}", handle=failing.output, never_fail=True, **options)
    slow = DblinkSendQueryOperator(task_id="send_slow", conn_id="warehouse_db", sql="SELECT pg_sleep(600)")
    for mode, options in MODES.items():
        DblinkJobSensor(task_id=f"timeout_{mode}", handle=slow.output, timeout=OVER[mode], **options)
        DblinkJobSensor(
            task_id=f"soft_timeout_{mode}", handle=slow.output, timeout=OVER[mode], soft_fail=True, **options
        )
