"""Syncs whose first try dies at exactly named moments, or is stopped; each has a table of its own."""

import threading
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_dblink.operators.sync import DblinkSyncOperator
from tests.acceptance.dying import Store, die

Moment = tuple[Any, ...]


class Sync(DblinkSyncOperator):
    """A sync that dies in its first try: at a write of its state, or after some seconds."""

    moment: Moment = ()

    def execute(self, context: Any) -> Any:
        if context["ti"].try_number == 1 and self.moment:
            if self.moment[0] == "seconds":
                threading.Timer(self.moment[1], die).start()
            else:
                when, nth = self.moment
                context["task_state_store"] = Store(context["task_state_store"], when, nth, die)
        return super().execute(context)


def sync(name: str, moment: Moment, **arguments: Any) -> None:
    task = Sync(
        task_id=name,
        source_conn_id="source_db",
        destination_conn_id="warehouse_db",
        source_table=f"sync_{name}",
        destination_table=f"sync_{name}",
        retry_delay=timedelta(0),
        **{"retries": 2, **arguments},
    )
    task.moment = moment


with DAG("sync_die", schedule=None):
    sync("before_id_is_stored", ("before", 1))
    sync("before_lock", ("after", 1))
    sync("before_commit", ("after", 2))
    sync("after_commit", ("before", 3))
    sync("after_all", ("after", 3))
    sync("while_it_applies", ("seconds", 3))  # its rows take longer

with DAG("sync_kill", schedule=None):
    sync("marked_failed", ())
    sync("timed_out", (), execution_timeout=timedelta(seconds=4), retries=0)
