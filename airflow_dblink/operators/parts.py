"""A table loaded in parts by many tasks, from one snapshot: a group of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal, get_args

from airflow.sdk import TaskGroup, chain
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.parts.load import DEADLINE, IDLE
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT
from airflow_dblink.operators.common.load_plan import MIN_PARTS, DblinkPartsPlanOperator
from airflow_dblink.operators.common.load_tasks import (
    INDEX_SESSIONS,
    OLDER_TRANSACTIONS_TIMEOUT,
    DblinkPartsDropOperator,
    DblinkPartsIndexOperator,
    DblinkPartsLoadOperator,
    DblinkPartsSwapOperator,
    DblinkPartsVerifyOperator,
)
from airflow_dblink.operators.common.pace import PAUSE_CHECK_INTERVAL

OnFailure = Literal["keep", "drop"]


def dblink_parted_transfer(
    *,
    group_id: str,
    source_conn_id: str,
    destination_conn_id: str,
    source_table: str | None = None,
    destination_table: str | None = None,
    source_sql: str | None = None,
    source_parameters: Params | None = None,
    tables: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    schemas: Mapping[str, str] | None = None,
    create: bool = False,
    columns: Sequence[str] | Mapping[str, str] | None = None,
    part_column: str | None = None,
    part_bytes: int = PART_BYTES,
    min_parts: int = MIN_PARTS,
    max_parts: int = MAX_PARTS,
    max_active_parts: int | None = None,
    lock: bool = True,
    max_mb_per_s: float | str | None = None,
    pause_while: str | None = None,
    pause_while_conn_id: str | None = None,
    pause_check_interval: timedelta = PAUSE_CHECK_INTERVAL,
    deadline: timedelta = DEADLINE,
    idle: timedelta = IDLE,
    index_sessions: int = INDEX_SESSIONS,
    swap_timeout: timedelta = SWAP_TIMEOUT,
    older_transactions_timeout: timedelta | None = OLDER_TRANSACTIONS_TIMEOUT,
    reset_sequences: bool = True,
    allow_empty_source: bool = False,
    on_failure: OnFailure = "keep",
    session_settings: Mapping[str, Any] | None = None,
    task_arguments: Mapping[str, Any] | None = None,
    outlets: Sequence[Any] = (),
) -> TaskGroup:
    """Return a group of tasks that copies a table, or a set of tables, in parts, and swaps it in.

    All rows are from one snapshot of the source, and all tables are swapped in one transaction.

    ``plan >> load (one task per part) >> verify >> index >> swap``. To be called in a Dag.

    :param group_id: name of the group; it begins the names of its tasks.
    :param source_conn_id: Airflow connection that is read. (templated)
    :param destination_conn_id: Airflow connection that is written. (templated)
    :param source_table: table that is read, as in SQL. (templated)
    :param source_sql: in its place, a query, or the path of a ``.sql`` file. (templated)
    :param source_parameters: values for ``%s`` or ``%(name)s`` in *source_sql*. (templated)
    :param destination_table: table whose place the loaded one takes, as in SQL. (templated)
    :param tables: in their place, patterns of all tables of a set: ``["sales.*", "public.orders"]``, as
        ``pg_dump --table`` has them. (templated)
    :param exclude: patterns of tables that don't belong to the set. (templated)
    :param schemas: destination schemas, by the source schemas that have another name there. (templated)
    :param create: of a set, make the schemas and tables that the destination lacks, when it is planned.
    :param columns: which columns, as a list; or as a mapping from source to destination names. (templated)
    :param part_column: cut the source into ranges of this column's values, and not of its pages: a view or
        a query has none. (templated)
    :param part_bytes: how large a part is at most, TOAST included.
    :param min_parts: so many parts at least, if they would have 8 MB: with many per worker, all end together.
    :param max_parts: so many parts at most; they are larger then.
    :param max_active_parts: how many parts are copied at the same time; by default as many as Airflow runs.
    :param lock: lock the source table in ACCESS SHARE mode while the snapshot is kept: TRUNCATE, VACUUM FULL
        and ALTER TABLE wait. Without it such a change is found, and the load fails.
    :param max_mb_per_s: largest number of MB (10^6 bytes of COPY data) per second of each part: parts that
        are copied at the same time move that much each. ``None``: no limit. (templated)
    :param pause_while: a query, or the path of a ``.sql`` file. While the first column of its first row is
        true, the plan waits before it begins, and the rows of all parts wait. (templated)
    :param pause_while_conn_id: Airflow connection on which *pause_while* runs; by default the destination's.
        (templated)
    :param pause_check_interval: time from one answer of *pause_while* to the next question.
    :param deadline: the most that the snapshot is kept; VACUUM on the source removes little meanwhile.
    :param idle: how long the snapshot is kept while no part uses it.
    :param index_sessions: how many indexes are built at the same time.
    :param swap_timeout: how long to try to lock the destination for the swap, each time for a second.
    :param older_transactions_timeout: how long the swap waits for transactions of the destination's database
        that hold an older snapshot, and would find an empty table. ``None``: don't wait.
    :param reset_sequences: move the destination's sequences beyond the values that came.
    :param allow_empty_source: let an empty source empty the destination.
    :param on_failure: what a load that has failed for good leaves. ``keep``: its tables and the snapshot;
        a cleared task goes on with them. ``drop``: nothing; the teardown ``drop`` removes them.
    :param session_settings: run-time parameters by name, local to the tasks' transactions. (templated)
    :param task_arguments: arguments of all tasks of the group: ``retries``, ``pool``, ``queue``, ...
    :param outlets: assets of the loaded tables, for the group's last task.

    :returns: the group; its last task, ``swap``, returns ``rows``, ``bytes``, ``seconds``, ``parts``,
        ``retries``, ``snapshot``, ``tables`` and ``xid``.
    :raises AirflowFailException: for arguments that make no sense.
    """
    if on_failure not in get_args(OnFailure):
        raise AirflowFailException(f"{group_id}: on_failure must be keep or drop, got {on_failure!r}")
    with TaskGroup(group_id) as group:
        common: dict[str, Any] = {
            "source_conn_id": source_conn_id,
            "source_table": source_table,
            "source_sql": source_sql,
            "source_parameters": source_parameters,
            "destination_conn_id": destination_conn_id,
            "destination_table": destination_table,
            "columns": columns,
            "session_settings": session_settings,
            **(task_arguments or {}),
        }
        paced: dict[str, Any] = {
            "max_mb_per_s": max_mb_per_s,
            "pause_while": pause_while,
            "pause_while_conn_id": pause_while_conn_id,
            "pause_check_interval": pause_check_interval,
        }
        plan = DblinkPartsPlanOperator(
            task_id="plan",
            tables=tables,
            exclude=exclude,
            schemas=schemas,
            create=create,
            part_column=part_column,
            part_bytes=part_bytes,
            min_parts=min_parts,
            max_parts=max_parts,
            lock=lock,
            deadline=deadline,
            idle=idle,
            **paced,
            **common,
        )
        common["load_id"] = plan.task_id
        of_set = {"parts": plan.output} if tables is not None else {}
        load = DblinkPartsLoadOperator.partial(
            task_id="load", max_active_tis_per_dagrun=max_active_parts, **paced, **common
        ).expand(part=plan.output)
        verified = DblinkPartsVerifyOperator(task_id="verify", parts=plan.output, **common)
        index = DblinkPartsIndexOperator(task_id="index", index_sessions=index_sessions, **of_set, **common)
        swapped = DblinkPartsSwapOperator(
            task_id="swap",
            swap_timeout=swap_timeout,
            older_transactions_timeout=older_transactions_timeout,
            reset_sequences=reset_sequences,
            allow_empty_source=allow_empty_source,
            **of_set,
            **common,
            **({"outlets": [*outlets]} if outlets else {}),
        )
        chain(plan, load, verified, index, swapped)
        if on_failure == "drop":
            # A run before must not keep it from coming.
            alone = {"depends_on_past": False, "wait_for_downstream": False}
            drop = DblinkPartsDropOperator(
                task_id="drop", tables=tables, exclude=exclude, schemas=schemas, **{**common, **alone}
            )
            # After all of them: once a part has failed, Airflow marks the swap, while other parts still run.
            [plan, load, verified, index, swapped] >> drop.as_teardown()
    return group
