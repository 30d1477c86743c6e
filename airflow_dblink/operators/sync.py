"""DblinkSyncOperator: a table made equal to another database's by moving only the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.sync.run import dry_run, run
from airflow_dblink.core.sync.session import Session
from airflow_dblink.core.sync.spec import Apply, Lock, Method, OnConflict, Spec, Triggers
from airflow_dblink.operators.common.arguments import flag, number, plan_of
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.pace import hold_before_work
from airflow_dblink.operators.common.progress import Progress
from airflow_dblink.operators.common.sync.statements import StatementsFileOperator
from airflow_dblink.operators.common.sync.watermark import WatermarkOperator, watermark_key
from airflow_dblink.operators.common.two_databases import TwoDatabasesOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


# Arguments that a template may have turned into text.
_FLAGS = ("insert", "update", "delete", "allow_empty_source", "reset_sequences")
_NUMBERS = ("replace_above", "max_delete_fraction", "max_change_fraction")


class DblinkSyncOperator(TwoDatabasesOperator, WatermarkOperator, StatementsFileOperator):
    """Make a table equal to a table or query of another database, moving only the difference.

    Compare: both servers compute checksums of groups of keys, at the same time; only groups that differ are
    compared row by row, and only rows that differ are moved. Plan: the rows that are missing, changed or
    extra in the destination; guards may refuse it. Apply: in one destination transaction, exactly once, with
    the table locked against writers. Verify: all rows that were compared one by one are compared again before
    the commit.

    At the commit the destination equals the source's snapshot (one REPEATABLE READ transaction). Rows whose
    values are equal, byte for byte, are never rewritten.

    :param source_conn_id: Airflow connection of the source. (templated)
    :param destination_conn_id: Airflow connection of the destination. (templated)
    :param destination_table: table to write, its name as in SQL; also a partitioned table. (templated)
    :param source_table: table or view to read; or (templated)
    :param source_sql: query to read, or the path of a ``.sql`` file. It runs two to four times in one
        snapshot, so it must give the same rows each time. (templated)
    :param source_parameters: values for ``%s`` or ``%(name)s`` in *source_sql*. (templated)
    :param key: destination columns that identify a row. They need a unique index, and may have any types. By
        default the primary key. (templated)
    :param columns: columns to keep equal, as a list; or as a mapping from source to destination names. By
        default all: then neither side may have a column that the other lacks. (templated)
    :param where: condition that selects the rows to keep equal on both sides, in the destination's column
        names. Other rows stay as they are, unless they are in the way (*on_conflict*). (templated)
    :param where_parameters: values for ``%s`` or ``%(name)s`` in *where*. (templated)
    :param insert: insert rows that are missing in the destination. (templated)
    :param update: update rows that differ. (templated)
    :param delete: delete rows that the source lacks. (templated)
    :param method: ``difference``: compare checksums first. ``reload``: fetch all rows, and compare them in
        the destination. ``replace``: TRUNCATE, and load all rows; readers wait meanwhile. ``auto``:
        ``difference``, or ``reload`` for an empty table and if most groups differ. (templated)
    :param replace_above: lets ``auto`` take ``replace`` if groups with a larger part of the rows differ. It
        doesn't know single rows: no guards, no *where*, all columns. (templated)
    :param apply: ``set``: all changes as one statement. ``statements``: dblink's statements, one by one.
    :param lock: ``apply``: writers of the destination wait as soon as the differing groups are known, while
        rows are fetched and written. If anybody has written on that server since the comparison, the sync
        begins again under the lock, with a new snapshot. ``compare``: writers wait for the comparison, too;
        better if somebody always writes. Readers wait only for ``replace``.
    :param plan_only: a dry run: change nothing, and return the changes that the sync would make, with a
        ``plan``, and the guards that would refuse them. (templated)
    :param plan: result of a dry run (``plan_task.output``): make exactly these changes, or fail because the
        data moved on. (templated)
    :param statements_path: URL of a file on Airflow's object storage. The plan is written to it as dblink's
        statements, with row values; also in a dry run. (templated)
    :param statements_conn_id: Airflow connection of the object storage. (templated)
    :param max_delete_fraction: fail, with nothing changed, if a larger part of the destination's rows
        would be deleted; ``None`` for no limit. (templated)
    :param max_change_fraction: the same for all changes together. (templated)
    :param allow_empty_source: let an empty source empty the destination, within *max_delete_fraction*.
        (templated)
    :param on_conflict: for a source row with the value of another unique key that another destination row
        still has. ``error``: fail, naming the constraint. ``replace``: delete that destination row; if the
        plan updates it, it is inserted anew.
    :param triggers: ``fire``, or ``disable`` the destination table's own triggers meanwhile, as its owner;
        foreign keys are checked in any case.
    :param watermark_column: source column that grows with every change: only rows from the last run's
        highest value on are read, inserted and updated; nothing is deleted. The watermark is kept in
        Airflow's asset state store, and advanced after the commit. (templated)
    :param watermark_overlap: distance below the watermark from which rows are read again (timedelta, or a
        number): for transactions that commit later than they began.
    :param watermark_until: read only rows below this value. (templated)
    :param watermark_asset: the inlet or outlet that has the watermark; by default the task's only one.
    :param sample_keys: number of keys of each kind that the result names; 0 for none.
    :param reset_sequences: move the sequences of serial and identity columns beyond inserted values.
    :param max_mb_per_s: largest number of MB (10^6 bytes of COPY data) to move per second. (templated)
    :param pause_while: a query, or the path of a ``.sql`` file: while it returns true, rows wait. It runs
        before any work begins, and every *pause_check_interval* (5 s) while rows move. (templated)
    :param pause_while_conn_id: Airflow connection for it; by default the destination's. (templated)
    :param orphan_timeout: time that a try waits for the transaction of a killed try, before it cancels that
        and does the work again.
    :param kwargs: arguments of the base operators; also ``base_path``, a folder that *statements_path* must
        be in, and ``file_mode``, the permissions of that file on the worker's disk (``0600``).

    :returns: (XCom) ``source_rows`` and ``destination_rows`` that were compared; ``missing``, ``changed``
        and ``extra`` rows found; ``inserted``, ``updated``, ``deleted`` and ``displaced`` (to make way,
        *on_conflict*); ``groups``, ``groups_differing``, ``first_keys``, ``bytes`` that came to the worker,
        ``seconds``, ``method``, ``row_security`` (sides where policies hide rows), ``xid``; ``plan`` of a
        dry run, and the guards' refusals as ``refused``; ``watermark``. ``method`` is ``load`` if the table
        was empty.
    :raises AirflowFailException: for mistakes, guards and a plan that no longer holds (no retry helps), and
        if the server can't tell whether an earlier try has committed. Nothing is changed then.
    :raises VerificationError: if the destination isn't right after the changes; everything is rolled back.
    :raises RemoteError: a server's errors, naming its connection; nothing is changed then.
    :raises TransientError: the same, if a retry may help.
    :raises DblinkTaskKilledError: after a kill; nothing is changed then.
    """

    template_fields: Sequence[str] = (
        "source_conn_id",
        "destination_conn_id",
        "destination_table",
        "source_table",
        "source_sql",
        "source_parameters",
        "key",
        "columns",
        "where",
        "where_parameters",
        "method",
        "insert",
        "update",
        "delete",
        "allow_empty_source",
        "replace_above",
        "plan_only",
        "plan",
        "statements_path",
        "statements_conn_id",
        "max_delete_fraction",
        "max_change_fraction",
        "watermark_column",
        "watermark_until",
        "max_mb_per_s",
        "pause_while",
        "pause_while_conn_id",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "source_sql": "postgresql",
        "where": "postgresql",
        "pause_while": "postgresql",
        "source_parameters": "json",
        "where_parameters": "json",
        "key": "json",
        "columns": "json",
        "plan": "json",
        "session_settings": "json",
    }
    ui_color = "#f5e3cf"

    def __init__(
        self,
        *,
        where: str | None = None,
        where_parameters: Sequence[Any] | Mapping[str, Any] | None = None,
        insert: bool | str = True,
        update: bool | str = True,
        delete: bool | str = True,
        method: Method = "auto",
        replace_above: float | str | None = None,
        apply: Apply = "set",
        lock: Lock = "apply",
        plan_only: bool | str = False,
        plan: Any = None,
        max_delete_fraction: float | str | None = 0.25,
        max_change_fraction: float | str | None = None,
        allow_empty_source: bool | str = False,
        on_conflict: OnConflict = "error",
        triggers: Triggers = "fire",
        sample_keys: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.where, self.where_parameters = where, where_parameters
        self.insert, self.update, self.delete = insert, update, delete
        self.method = method
        self.replace_above = replace_above
        self.apply = apply
        self.lock = lock
        self.plan_only = plan_only
        self.plan = plan
        self._has_plan = plan is not None  # whatever a template makes of it
        self.max_delete_fraction, self.max_change_fraction = max_delete_fraction, max_change_fraction
        self.allow_empty_source = allow_empty_source
        self.on_conflict = on_conflict
        self.triggers = triggers
        self.sample_keys = sample_keys
        self._note_given(where=where)
        check_known(self)

    def _check_early(self) -> None:
        self._demand_arguments()
        flag("plan_only", self.plan_only)
        spec = self._spec(None)
        spec.check()
        self._demand_statements_shown(spec)

    def execute(self, context: Context) -> dict[str, Any]:
        """Make the table equal; the counts become the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
            self._demand_statements_file()
            store = self._watermark_store(context)
            spec = self._spec(store.get(self.watermark_key) if store is not None else None)
            with self._pace(self.destination_conn_id) as pace:
                result = self._sync(context, spec, pace)
            if store is not None and not self._is_dry:
                self._advance(store, self.source_conn_id, result)
            self._tell_assets(context, result, changed=False if self._is_dry else None)
            return result

    def _sync(self, context: Context, spec: Spec, pace: Pace | None) -> dict[str, Any]:
        with self._hook(self.source_conn_id) as there, self._hook(self.destination_conn_id) as here:
            link = here.link()
            destination = Side(link.connection, self.destination_conn_id)
            once = self._once(context, destination.connection, destination.conn_id)
            if not self._is_dry and (earlier := self._recall(context, here, once)) is not None:
                self.log.info("An earlier try has committed: nothing is done. %s", earlier)
                once.finish(earlier)
                return earlier
            if pace is not None:
                hold_before_work(pace, destination)
            source = Side(there.link().connection, self.source_conn_id)
            session = Session(
                source,
                link,
                self._settings(source.connection, source.conn_id),
                self._settings(destination.connection, destination.conn_id),
                pace,
                Progress(self.log.info, pace).report,
            )
            use = self._statements_writer(link)
            if self._is_dry:
                result = dry_run(session, spec, use)
                self._report(result, "Would be done, by a dry run")
                return result
            result = run(session, spec, once, use)
            self._report(result, "Done")
            self._check()
            once.finish(result)
            return result

    @property
    def _is_dry(self) -> bool:
        return flag("plan_only", self.plan_only)

    def _spec(self, watermark: Any) -> Spec:
        given = vars(self)
        flags = {name: flag(name, given[name]) for name in _FLAGS}
        numbers = {name: number(name, given[name]) for name in _NUMBERS}
        return Spec.of({**given, **flags, **numbers, "plan": self._given_plan(), "watermark_from": watermark})

    def _given_plan(self) -> Mapping[str, Any] | None:
        """Return the plan; ``None`` only if the argument wasn't given.

        :raises UsageError: if a template left it without a value.
        """
        found = plan_of(self.plan)
        if found is None and self._has_plan:
            raise UsageError(
                "plan has no value, and a sync without a plan would make all changes",
                hint="check whether the task that makes the plan has run, and returned it",
            )
        return found

    # -- the watermark

    @property
    def watermark_key(self) -> str:
        """The watermark's key in the asset's state; see :func:`watermark_key`."""
        work = (
            *(self.destination_conn_id, self.destination_table, self.source_conn_id, self.source_table),
            *(self.source_sql, self.source_parameters, self.where, self.where_parameters),
            *(self.columns, self.key, self.watermark_column),
        )
        return watermark_key(work, (self.insert, self.update, self.delete))

    # -- the log

    def _report(self, result: Mapping[str, Any], title: str) -> None:
        for side in result["row_security"]:
            self.log.warning("Row-level security limits which rows of the %s are seen.", side)
        counts = self._counts(result)
        self.log.info(
            "%s: %s inserted, %s updated, %s deleted in %s.%s (%s; %.1f MB to the worker, %s s)",
            title,
            *(f"{count:,}" for count in counts),
            self.destination_conn_id,
            self.destination_table,
            result["method"],
            result["bytes"] / 1e6,
            result["seconds"],
        )
        differing, all_groups = result["groups_differing"], result["groups"]
        self.log.info(
            "Compared %s rows of the source with %s of the destination%s.",
            f"{result['source_rows'] or 0:,}",
            f"{result['destination_rows'] or 0:,}",
            f"; {differing:,} of {all_groups:,} groups differ" if all_groups else "",
        )
        for kind, keys in result["first_keys"].items():
            if keys:
                shown = "; ".join(", ".join(key) for key in keys)
                self.log.info("%s: %s rows, the first keys: %s", kind, f"{result[kind]:,}", shown)
        for refused in result.get("refused", []):
            self.log.warning("A guard would refuse it: %s", refused)

    def _counts(self, result: Mapping[str, Any]) -> list[int]:
        """Return the numbers of changes; of a dry run, those that a sync would make."""
        if not self._is_dry:
            return [result[name] for name in ("inserted", "updated", "deleted")]
        found = zip(("missing", "changed", "extra"), ("insert", "update", "delete"), strict=True)
        return [result[kind] if flag(name, getattr(self, name)) else 0 for kind, name in found]
