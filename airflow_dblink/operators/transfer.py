"""DblinkTransferOperator: rows from one database into a table of another, by COPY, exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_dblink.core.tables.like import Like
from airflow_dblink.core.transfer.plan import Spec
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT
from airflow_dblink.core.transfer.verify import Verify
from airflow_dblink.operators.common.arguments import flag, or_none
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.moving import MovingOperator
from airflow_dblink.operators.common.two_databases import TwoDatabasesOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class DblinkTransferOperator(TwoDatabasesOperator, MovingOperator):
    """Move rows from one PostgreSQL database into a table of another, by COPY, exactly once.

    Rows never become Python objects, so every type and value arrives as it was. Columns go by
    name. Everything is checked before a row moves; then one destination transaction does it all,
    so a failure leaves the destination as it was, and a retry never doubles rows.

    The source is read by one statement, hence from one snapshot, in a read-only transaction. Where
    all types are built-in and the same on both sides the data travels in binary, else as text.

    :param source_conn_id: Airflow connection that is read. (templated)
    :param destination_conn_id: Airflow connection that is written. (templated)
    :param destination_table: table name as in SQL: ``orders``, ``sales.orders``, ``"My Table"``. (templated)
    :param source_table: table or view that is read; or (templated)
    :param source_sql: the query that is read, or the path of a ``.sql`` file. (templated)
    :param source_parameters: values for ``%s`` or ``%(name)s`` in *source_sql*. (templated)
    :param mode: ``append``: add the rows. ``replace``: TRUNCATE and load; readers wait meanwhile.
        ``upsert``: insert, or update the row with the same *key*; rows whose values are equal are not
        rewritten. ``create``: make the table, from the source's columns (and primary key). ``swap``: load a
        new table, which takes the destination's place in the end: readers wait milliseconds. (templated)
    :param columns: which columns, as a list; or as a mapping from source to destination names. By
        default all source columns, each of which the destination must have; those that the
        destination generates are left to it. (templated)
    :param key: columns of a unique index for ``upsert``; by default the primary key. (templated)
    :param pre_sql: run in the destination's transaction before the load. (templated)
    :param post_sql: run in the destination's transaction after the load. (templated)
    :param lock: lock the destination table first, before *pre_sql*: nobody else writes to it until the
        transaction ends, and two tasks that delete and load the same rows do so one after the other. Reading
        goes on. Wait no longer than ``session_settings={"lock_timeout": "10min"}`` says.
    :param allow_empty_source: let an empty source empty the destination in modes ``replace`` and ``swap``.
        (templated)
    :param analyze: ANALYZE the destination in the end; by default left to autovacuum. ``swap`` always
        does it.
    :param reset_sequences: move the sequences of loaded columns (serial, identity, or behind a default)
        beyond the values that came, in their own direction and steps.
    :param max_mb_per_s: move at most so many MB (10^6 bytes of COPY data) per second. (templated)
    :param pause_while: a query, or the path of a ``.sql`` file: while it gives true, rows wait. It is asked
        before anything is begun, and every *pause_check_interval* (5 s) while rows move. (templated)
    :param pause_while_conn_id: where it is asked; by default the destination's connection. (templated)
    :param verify: compare the destination with the source after the load, before *post_sql*; if they differ,
        nothing is committed. ``count``: as many rows are kept as were sent, and after ``replace``, ``create``
        and ``swap`` the table has as many. ``checksum``, for these three: the columns that were moved have
        the same values, too; the source is read twice, from one snapshot. ``None``: no check; if the
        destination drops rows, the log says so. (templated)
    :param rebuild_indexes: drop the destination's indexes before the load and build them after it, in the
        same transaction. ``None``: in mode ``replace``, if the source is estimated at over 10,000 rows,
        the role owns the table, no trigger fires for its new rows, and the database has no event triggers.
        ``True``: in any case, and in mode ``append`` with *lock* into an empty table, which nobody can read
        then until the load has ended. ``False``: never. Whatever others depend on stays as it is, such as a
        key that another table references.
    :param like: for mode ``create``: ``columns``, or ``all``, which also takes the *source_table*'s defaults,
        identity and own sequences, indexes, unique and exclusion constraints, CHECKs and comments. They are
        tried on the empty table first, so what can't be made is known before a row moves.
    :param swap_timeout: how long ``swap`` goes on asking for the lock in the end, a moment at a time, while
        others use the table; before that also for the locks that foreign keys need.
    :param old_snapshots_timeout: how long ``swap`` waits for the transactions that have a snapshot when the
        load is done, and that would see the new rows after the swap. By default it doesn't wait.
    :param orphan_timeout: how long a try waits for the transaction of a killed one, before it is
        cancelled and done again.

    :returns: (XCom) ``rows`` and ``bytes`` moved, ``changed`` rows in the destination, ``seconds``,
        ``format`` (``binary`` or ``text``), ``xid`` of the destination's transaction, and what was
        ``verified``: ``count``, ``checksum`` or ``None``.
    :raises AirflowFailException: for mistakes found before a row moves (no retry helps), for an empty source
        that would empty the destination (it stays as it is), and if the server can't tell whether an
        earlier try has committed.
    :raises VerificationError: if the destination isn't what *verify* demands; nothing is changed then.
    :raises RemoteError: what a server says, naming its connection; nothing is changed then.
    :raises TransientError: the same, where a retry may help.
    :raises DblinkTaskKilledError: after a kill; nothing is changed then.
    """

    template_fields: Sequence[str] = (
        "source_conn_id",
        "destination_conn_id",
        "destination_table",
        "source_table",
        "source_sql",
        "source_parameters",
        "mode",
        "columns",
        "key",
        "pre_sql",
        "post_sql",
        "allow_empty_source",
        "max_mb_per_s",
        "pause_while",
        "pause_while_conn_id",
        "verify",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "source_sql": "postgresql",
        "pre_sql": "postgresql",
        "post_sql": "postgresql",
        "pause_while": "postgresql",
        "source_parameters": "json",
        "columns": "json",
        "key": "json",
        "session_settings": "json",
    }
    ui_color = "#f5e3cf"

    def __init__(
        self,
        *,
        pre_sql: str | None = None,
        post_sql: str | None = None,
        analyze: bool = False,
        lock: bool = False,
        verify: Verify | None = None,
        rebuild_indexes: bool | None = None,
        like: Like = "columns",
        swap_timeout: timedelta = SWAP_TIMEOUT,
        old_snapshots_timeout: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pre_sql = pre_sql
        self.post_sql = post_sql
        self.analyze = analyze
        self.lock = lock
        self.verify = verify
        self.rebuild_indexes = rebuild_indexes
        self.like = like
        self.swap_timeout = swap_timeout
        self.old_snapshots_timeout = old_snapshots_timeout
        self._note_given(pre_sql=pre_sql, post_sql=post_sql)
        check_known(self)

    def _check_early(self) -> None:
        self._demand_arguments()
        self._spec().check(self.source_conn_id)

    def _spec(self) -> Spec:
        may_empty = flag("allow_empty_source", self.allow_empty_source)
        return Spec.of({**vars(self), "allow_empty_source": may_empty, "verify": or_none(self.verify)})

    def execute(self, context: Context) -> dict[str, Any]:
        """Move the rows; the counts become the XCom return value."""
        with self._errors_for_airflow():
            self._demand_arguments()
            with self._pace(self.destination_conn_id) as pace:
                where = self.source_conn_id, self.destination_conn_id
                result = self._move(context, *where, self._spec(), pace)
            # A new or emptied table has changed, whatever comes.
            changed = True if self.mode in ("replace", "create", "swap") else None
            self._tell_assets(context, result, changed=changed)
            return result
