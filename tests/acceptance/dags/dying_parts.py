"""A load in parts, some of whose tasks are killed in their first try, or fail in it."""

from datetime import timedelta
from typing import Any
from unittest.mock import patch

from airflow.sdk import DAG, Param

from airflow_dblink.operators import parts
from airflow_dblink.operators.common.load_tasks import DblinkPartsLoadOperator
from airflow_dblink.operators.common.progress import Progress
from tests.acceptance.dying import die

DIES, FAILS = 2, 3


class DyingPart(DblinkPartsLoadOperator):
    """Part 2 is killed in the middle of its first try; part 3 fails as long as ``fails`` is set."""

    def execute(self, context: Any) -> Any:
        if self.part == DIES and context["ti"].try_number == 1:
            Progress.report = lambda *_: die()  # type: ignore[method-assign]
        if self.part == FAILS and context["params"]["fails"] and context["ti"].try_number <= 2:
            raise RuntimeError("as the test wants it")
        return super().execute(context)


for on_failure, dag_id in (("keep", "dying_parts"), ("drop", "dropped_parts")):
    with (
        patch.object(parts, "DblinkPartsLoadOperator", DyingPart),
        DAG(dag_id=dag_id, schedule=None, params={"fails": Param(False, type="boolean")}),
    ):
        parts.dblink_parted_transfer(
            group_id="load",
            source_conn_id="source_db",
            source_table="dying_part",
            destination_conn_id="warehouse_db",
            destination_table="dying_part",
            part_bytes=250_000,
            on_failure=on_failure,  # type: ignore[arg-type]
            task_arguments={"retries": 1, "retry_delay": timedelta(0)},
        )
