"""Tasks that die, or are suspended, at exactly named moments of their first try; the next tries live.

The moments are the writes of the state of :class:`airflow_dblink.core.once.transaction.Once`, and "while it
sleeps". Every effect is a row of ``effect`` in the warehouse, and a value of its sequence ``runs``. No
rollback undoes the latter, so it counts how often the work was begun.
"""

import os
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
from airflow.sdk import DAG

from airflow_dblink.operators.common import base
from airflow_dblink.operators.execute import DblinkExecOperator
from airflow_dblink.operators.transfer import DblinkTransferOperator
from tests.acceptance.dying import Store, die, while_it_sleeps

Moment = tuple[Any, ...]

SUSPENDED = Path(os.environ.get("SUSPENDED_PIDS", "/nonexistent"))


def suspend() -> None:
    """Stop this try and its supervisor, whose heartbeats would keep it alive; the test wakes them."""
    (SUSPENDED / f"{os.getpid()}").write_text(f"{os.getppid()}")
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


class FirstTryDies:
    """Mixin that ends or stops the first try."""

    moment: Moment = ()

    def execute(self, context: Any) -> Any:
        if context["ti"].try_number == 1:
            event, *where = self.moment
            if event == "die_while_it_sleeps":
                while_it_sleeps(where[0], die)
            elif event == "sigterm_while_it_sleeps":  # to the supervisor
                vars(base)["_STATE_ANSWER_S"] = 30.0  # the API may be slow, and no SIGKILL follows
                while_it_sleeps(where[0], psutil.Process(os.getppid()).terminate)
            else:
                happening = {"die": die, "suspend": suspend}[event]
                context["task_state_store"] = Store(
                    context["task_state_store"], where[0], where[1], happening
                )
        return super().execute(context)  # type: ignore[misc] # a mixin


class Exec(FirstTryDies, DblinkExecOperator):
    pass


class Transfer(FirstTryDies, DblinkTransferOperator):
    pass


def execs(moments: dict[str, Moment], sql: str) -> None:
    for name, moment in moments.items():
        task = Exec(
            task_id=f"exec_{name}",
            retries=2,
            retry_delay=timedelta(0),
            conn_id="warehouse_db",
            sql=sql,
            parameters={"task": f"exec_{name}"},
        )
        task.moment = moment


def transfers(moments: dict[str, Moment], source_sql: str) -> None:
    for name, moment in moments.items():
        task = Transfer(
            task_id=f"transfer_{name}",
            retries=2,
            retry_delay=timedelta(0),
            source_conn_id="source_db",
            destination_conn_id="warehouse_db",
            source_sql=source_sql,
            source_parameters={"task": f"transfer_{name}"},
            destination_table="effect",
            columns=["task"],
            pre_sql="SELECT nextval('runs')",
        )
        task.moment = moment


QUICK = "INSERT INTO effect (task, run) VALUES (%(task)s, nextval('runs'))"
SLOW = QUICK + "; SELECT pg_sleep(15)"
TWO_MINUTES = "SELECT 'transfer'::text AS task FROM generate_series(1, 1200) WHERE pg_sleep(0.1) IS NOT NULL"
ONE_ROW = "SELECT %(task)s::text AS task"

with DAG("die", schedule=None):
    execs(
        {
            "before_id_is_stored": ("die", "before", 1),
            "before_commit": ("die", "after", 1),
            "after_commit": ("die", "before", 2),
            "after_all": ("die", "after", 2),
        },
        QUICK,
    )
    execs({"while_it_runs": ("die_while_it_sleeps", "warehouse_db")}, SLOW)
    transfers(
        {
            "before_id_is_stored": ("die", "before", 1),
            "before_rows": ("die", "after", 1),
            "before_commit": ("die", "after", 2),
            "after_commit": ("die", "before", 3),
            "after_all": ("die", "after", 3),
        },
        ONE_ROW,
    )
    transfers({"while_it_runs": ("die_while_it_sleeps", "source_db")}, ONE_ROW + " FROM pg_sleep(15)")

with DAG("zombie", schedule=None):
    execs({"without_id": ("suspend", "before", 1), "with_id": ("suspend", "after", 1)}, QUICK)
    transfers({"with_id": ("suspend", "after", 1), "before_commit": ("suspend", "before", 2)}, ONE_ROW)

with DAG("worker_restart", schedule=None):
    execs({"restart": ("sigterm_while_it_sleeps", "warehouse_db")}, SLOW)
    transfers({"restart": ("sigterm_while_it_sleeps", "source_db")}, ONE_ROW + " FROM pg_sleep(15)")

with DAG("clear", schedule=None):
    DblinkExecOperator(
        task_id="exec", conn_id="warehouse_db", sql=QUICK, parameters={"task": "exec"}, retries=1
    )


with DAG("kill", schedule=None):
    DblinkExecOperator(
        task_id="exec",
        conn_id="warehouse_db",
        sql="INSERT INTO effect (task) VALUES ('exec'); SELECT pg_sleep(120)",
        retries=2,
    )
    DblinkTransferOperator(
        task_id="transfer",
        source_conn_id="source_db",
        destination_conn_id="warehouse_db",
        source_sql=TWO_MINUTES,
        destination_table="effect",
        pre_sql="INSERT INTO effect (task) VALUES ('transfer')",
    )
    DblinkTransferOperator(
        task_id="transfer_slow_destination",
        source_conn_id="source_db",
        destination_conn_id="warehouse_db",
        source_sql="SELECT 'slow'::text AS task FROM generate_series(1, 10)",
        destination_table="slow_effect",
        retries=2,
    )

with DAG("timeout", schedule=None):
    DblinkExecOperator(
        task_id="exec",
        conn_id="warehouse_db",
        sql="INSERT INTO effect (task) VALUES ('exec'); SELECT pg_sleep(120)",
        execution_timeout=timedelta(seconds=3),
    )
    DblinkTransferOperator(
        task_id="transfer",
        source_conn_id="source_db",
        destination_conn_id="warehouse_db",
        source_sql=TWO_MINUTES,
        destination_table="effect",
        execution_timeout=timedelta(seconds=3),
    )
