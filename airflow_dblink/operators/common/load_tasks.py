"""The tasks of a load in parts, and what they share: between which databases, which table, which load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from airflow.sdk import XComArg
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import LoadLostError, UsageError, VerificationError
from airflow_dblink.core.once.tries import Tries
from airflow_dblink.core.parts.copying import copy_part
from airflow_dblink.core.parts.indexing import build_indexes
from airflow_dblink.core.parts.key import LoadKey
from airflow_dblink.core.parts.load import DEADLINE, IDLE, LoadSpec, begin, key_of
from airflow_dblink.core.parts.slices import MAX_PARTS, PART_BYTES
from airflow_dblink.core.parts.swapping import is_left, swap
from airflow_dblink.core.parts.verifying import verify
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sqltext.names import demand_columns
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT, demand_swap_arguments
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.hooks.parts.task import task_name
from airflow_dblink.operators.common.arguments import demand_timedelta, flag, whole_number
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.known import check_known, constructing
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.pace import PacedOperator, hold_before_work
from airflow_dblink.operators.common.progress import Progress

if TYPE_CHECKING:
    from airflow.sdk import Context

INDEX_SESSIONS = 2
OLDER_TRANSACTIONS_TIMEOUT = timedelta(minutes=10)
_KEY = "airflow_dblink_load"
MIN_PARTS = 16


@dataclass(frozen=True)
class Both:
    """Both sides of a load, and the hook that has opened the source."""

    source: Side
    destination: Side
    source_hook: DblinkHook


class LoadBaseOperator(DblinkBaseOperator):
    """Base of the tasks of a load in parts; not one itself.

    :param load_id: task_id of the task that plans the load: it tells the loads of one Dag apart. By default
        its own.
    :param source_conn_id: Airflow connection that is read. (templated)
    :param destination_conn_id: Airflow connection that is written. (templated)
    :param destination_table: table whose place the loaded one takes, as in SQL. (templated)
    :param source_table: table that is read, as in SQL. (templated)
    :param columns: which columns, as a list; or as a mapping from source to destination names. (templated)
    """

    template_fields: Sequence[str] = (
        "source_conn_id",
        "destination_conn_id",
        "destination_table",
        "source_table",
        "columns",
        "session_settings",
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {"columns": "json", "session_settings": "json"}
    ui_color = "#f5e3cf"

    def __init__(
        self,
        *,
        source_conn_id: str,
        destination_conn_id: str,
        destination_table: str,
        source_table: str,
        columns: Sequence[str] | Mapping[str, str] | None = None,
        load_id: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.load_id = load_id
        self.source_conn_id = source_conn_id
        self.destination_conn_id = destination_conn_id
        self.destination_table = destination_table
        self.source_table = source_table
        self.columns = columns

    def _check_early(self) -> None:
        self._spec().check()

    def _spec(self) -> LoadSpec:
        names = ("source_conn_id", "destination_conn_id", "destination_table", "source_table")
        self._demand_values(*names)
        demand_columns("columns", self.columns, or_mapping=True)
        return LoadSpec(self.destination_table, self.source_table, self.columns)

    def _key(self, context: Context, destination: Side) -> LoadKey:
        ti = context["ti"]
        names = {"dag_id": ti.dag_id, "run_id": ti.run_id, "load_id": self.load_id or ti.task_id}
        settings = self._settings(destination.connection, destination.conn_id)
        return key_of(destination, self._spec(), settings, names)

    @contextmanager
    def _sides(self) -> Iterator[Both]:
        """Give both sides."""
        with (
            self._no_retry_in_vain(),
            self._hook(self.source_conn_id) as source,
            self._hook(self.destination_conn_id) as destination,
        ):
            yield Both(
                Side(source.link().connection, self.source_conn_id),
                Side(destination.link().connection, self.destination_conn_id),
                source,
            )

    @contextmanager
    def _destination(self) -> Iterator[tuple[DblinkHook, Side]]:
        """Give the destination alone, for what needs no source any more."""
        with self._no_retry_in_vain(), self._hook(self.destination_conn_id) as hook:
            yield hook, Side(hook.link().connection, self.destination_conn_id)

    @contextmanager
    def _no_retry_in_vain(self) -> Iterator[None]:
        """Fail for good on a mistake, or on a load that is lost."""
        with self._errors_for_airflow():
            self._check_early()
            try:
                yield
            except (LoadLostError, VerificationError) as error:
                raise AirflowFailException(str(error)) from None


class PacedLoadBaseOperator(PacedOperator, LoadBaseOperator):
    """Base of the tasks that begin a load and copy its parts; not one itself."""

    template_fields: Sequence[str] = (
        *LoadBaseOperator.template_fields,
        "max_mb_per_s",
        "pause_while",
        "pause_while_conn_id",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **LoadBaseOperator.template_fields_renderers,
        "pause_while": "postgresql",
    }

    def _check_early(self) -> None:
        super()._check_early()
        self._demand_pace()


class DblinkPartsPlanOperator(PacedLoadBaseOperator):
    """Begin a load in parts: keep a snapshot of the source, make the table that is loaded, cut the source.

    With *pause_while* it waits before it begins anything. No rows move, so *max_mb_per_s* is only checked.

    :param part_bytes: how large a part is at most, TOAST included.
    :param min_parts: so many parts at least, if they would have 8 MB.
    :param max_parts: so many parts at most; they are larger then.
    :param lock: lock the source table in ACCESS SHARE mode while the snapshot is kept: TRUNCATE, VACUUM FULL
        and ALTER TABLE wait. Without it such a change is found, and the load fails.
    :param deadline: the most that the snapshot is kept.
    :param idle: how long the snapshot is kept while no part uses it.

    :returns: (XCom) the numbers of the parts, to be mapped over.
    """

    def __init__(
        self,
        *,
        part_bytes: int = PART_BYTES,
        min_parts: int = MIN_PARTS,
        max_parts: int = MAX_PARTS,
        lock: bool = True,
        deadline: timedelta = DEADLINE,
        idle: timedelta = IDLE,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            for name, value in (("deadline", deadline), ("idle", idle)):
                demand_timedelta(name, value)
            self.lock = flag("lock", lock)
        self.part_bytes = part_bytes
        self.min_parts = min_parts
        self.max_parts = max_parts
        self.deadline = deadline
        self.idle = idle
        check_known(self)

    def _spec(self) -> LoadSpec:
        return replace(
            super()._spec(),
            part_bytes=self.part_bytes,
            min_parts=self.min_parts,
            max_parts=self.max_parts,
            lock=self.lock,
            deadline_s=self.deadline.total_seconds(),
            idle_s=self.idle.total_seconds(),
        )

    def execute(self, context: Context) -> list[int]:
        """Begin the load, or go on with what an earlier try has begun."""
        ti = context["ti"]
        tries = Tries(context["task_state_store"], ti.max_tries)
        left = tries.left(_KEY)
        # If no try of this run has begun, what is there is another run's: it had this name, and was deleted.
        is_anew = left is None or left.is_cleared or bool(left.facts.get("anew"))
        if self.pause_while is not None and is_anew:
            self._hold()
        # The store refuses this if a later try is running. "anew" stays until a try has begun the load.
        run = uuid4().hex if left is None else str(left.facts.get("run", ""))
        tries.leave(_KEY, {"run": run, "anew": is_anew})
        with self._sides() as both:
            source, destination = both.source, both.destination
            ledger, head = begin(
                source,
                destination,
                lambda: connect(both.source_hook.target(), application_name=task_name(), check=self._check),
                self._key(context, destination),
                self._spec(),
                try_number=ti.try_number,
                run=run,
                is_anew=is_anew,
                source_settings=self._settings(source.connection, source.conn_id),
                destination_settings=self._settings(destination.connection, destination.conn_id),
            )
            tries.leave(_KEY, {"run": run})
            self.log.info("The load's table is %s until it takes its place", ledger.shadow.as_string())
            return list(range(1, head.parts + 1))

    def _hold(self) -> None:
        with self._destination() as (_, destination), self._pace(self.destination_conn_id) as pace:
            if pace is not None:
                hold_before_work(pace, destination)


class DblinkPartsLoadOperator(PacedLoadBaseOperator):
    """Copy one part of a load, once, across retries and killed workers.

    :param part: its number. (templated)

    :returns: (XCom) ``rows`` and ``bytes`` of the part, ``seconds`` and ``tries`` that it took.
    """

    template_fields: Sequence[str] = (*PacedLoadBaseOperator.template_fields, "part")

    def __init__(self, *, part: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part

    def execute(self, context: Context) -> dict[str, Any]:
        """Copy the part; the counts become the XCom return value."""
        with self._sides() as both, self._pace(self.destination_conn_id) as pace:
            source, destination = both.source, both.destination
            progress = Progress(self.log.info, pace)
            part = whole_number("part", self.part, least=1)
            done = copy_part(
                source,
                destination,
                self._key(context, destination),
                self._spec(),
                part,
                context["ti"].try_number,
                source_settings=self._settings(source.connection, source.conn_id),
                destination_settings=self._settings(destination.connection, destination.conn_id),
                progress=progress.report,
                pace=pace,
            )
            progress.say(f"Part {part}", done.rows, done.bytes, done.seconds - (pace.paused_s if pace else 0))
            return {"rows": done.rows, "bytes": done.bytes, "seconds": done.seconds, "tries": done.tries}


class DblinkPartsVerifyOperator(LoadBaseOperator):
    """Look whether all parts of a load are there, and let go of the source's snapshot.

    :param parts: the numbers of the parts, as the plan has returned them. (templated)

    :returns: (XCom) ``rows``, ``bytes`` and ``parts``.
    """

    template_fields: Sequence[str] = (*LoadBaseOperator.template_fields, "parts")

    def __init__(self, *, parts: Sequence[int] | XComArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    def execute(self, context: Context) -> dict[str, Any]:
        """Verify the load; the counts become the XCom return value."""
        with self._sides() as both:
            if not isinstance(self.parts, Sequence) or isinstance(self.parts, str):
                raise UsageError(f"parts must be a list of numbers, got {type(self.parts).__name__}")
            source, destination = both.source, both.destination
            settings = self._settings(destination.connection, destination.conn_id)
            key, spec = self._key(context, destination), self._spec()
            done = verify(source, destination, key, spec, len(self.parts), settings)
            self.log.info("%s rows in %s parts, %.1f MB", f"{done.rows:,}", done.parts, done.bytes / 1e6)
            return {"rows": done.rows, "bytes": done.bytes, "parts": done.parts}


class DblinkPartsIndexOperator(LoadBaseOperator):
    """Build the indexes of the table that was loaded, several at once.

    :param index_sessions: how many at once; each is a session of its own.

    :returns: (XCom) ``indexes``: how many were built.
    """

    def __init__(self, *, index_sessions: int = INDEX_SESSIONS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            self.index_sessions = whole_number("index_sessions", index_sessions, least=1)

    def execute(self, context: Context) -> dict[str, Any]:
        """Build the indexes that an earlier try hasn't built."""
        with self._destination() as (hook, destination):
            target = hook.target()
            built = build_indexes(
                destination,
                lambda check: connect(target, application_name=task_name(), check=check),
                self._key(context, destination),
                self._spec(),
                sessions=self.index_sessions,
                check=self._check,
                settings=self._settings(destination.connection, destination.conn_id),
            )
            return {"indexes": built}


class DblinkPartsSwapOperator(LoadBaseOperator, ExactlyOnceOperator):
    """Give the loaded table the destination's place, exactly once: readers wait for the rename alone.

    :param swap_timeout: how long to try to lock the destination, each time for a second.
    :param older_transactions_timeout: how long to wait for transactions that hold an older snapshot: they
        would find an empty table afterwards. ``None``: don't wait.
    :param reset_sequences: move the destination's sequences beyond the values that came.
    :param allow_empty_source: let an empty source empty the destination.

    :returns: (XCom) ``rows``, ``bytes`` and ``seconds`` of all parts together, ``parts``, ``retries``,
        ``snapshot`` (when it was taken, as ISO text) and ``xid``.
    """

    def __init__(
        self,
        *,
        swap_timeout: timedelta = SWAP_TIMEOUT,
        older_transactions_timeout: timedelta | None = OLDER_TRANSACTIONS_TIMEOUT,
        reset_sequences: bool = True,
        allow_empty_source: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with constructing(self):
            demand_swap_arguments("swap", swap_timeout, None)
            if older_transactions_timeout is not None:
                demand_timedelta("older_transactions_timeout", older_transactions_timeout)
            self.reset_sequences = flag("reset_sequences", reset_sequences)
            self.allow_empty_source = flag("allow_empty_source", allow_empty_source)
        self.swap_timeout = swap_timeout
        self.older_transactions_timeout = older_transactions_timeout

    def execute(self, context: Context) -> dict[str, Any]:
        """Swap the tables, once across all tries."""
        with self._destination() as (hook, destination):
            settings = self._settings(destination.connection, destination.conn_id)
            once = self._once(context, destination.connection, destination.conn_id)
            result = self._recall(context, hook, once)
            key, spec = self._key(context, destination), self._spec()
            if result is not None and is_left(destination, key, spec, settings):
                self.log.info("An earlier try has swapped a load that was planned anew since.")
                result = None
            if result is not None:
                self.log.info("An earlier try has committed: nothing is swapped. %s", result)
            else:
                result = swap(
                    destination,
                    key,
                    spec,
                    once,
                    settings,
                    swap_timeout=self.swap_timeout,
                    older_transactions_timeout=self.older_transactions_timeout,
                    reset_sequences=self.reset_sequences,
                    allow_empty_source=self.allow_empty_source,
                )
                self._check()
            once.finish(result)
            return result
