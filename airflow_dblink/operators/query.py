"""DblinkQueryOperator: SQL in one database over the results of queries in others, exactly once."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.link import Link
from airflow_dblink.core.once.transaction import Once
from airflow_dblink.core.remote_sets.attach import attach, prepare
from airflow_dblink.core.remote_sets.remote import Remote, remotes_by_table
from airflow_dblink.core.server.settings import HANDED_ON
from airflow_dblink.core.server.side import Side, begin
from airflow_dblink.core.server.target import parse_session_settings
from airflow_dblink.core.sqltext.lexer import Part, parts
from airflow_dblink.core.sqltext.rules import demand_script, no_query
from airflow_dblink.core.sqltext.user_text import UserText
from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.operators.common.known import check_known
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.rows import RowDestination, RowSink
from airflow_dblink.operators.common.sql import SqlOperator

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

__all__ = ["DblinkQueryOperator", "Remote"]

_REPORT_EVERY_S = 5.0
_MB = 1e6
_BEFORE_CTE = ("AS", "MATERIALIZED")
_CHANGES = ("INSERT", "UPDATE", "DELETE", "MERGE")
# Used together with the words: this pattern may match in a string, and the words AS delete may name a column.
_CHANGING_CTE = re.compile(rf"\bAS\s+((NOT\s+)?MATERIALIZED\s*)?\(\s*({'|'.join(_CHANGES)})\b", re.IGNORECASE)
_ALTERNATIVE = "DblinkExecOperator with transaction=False"


class DblinkQueryOperator(SqlOperator, RowDestination, ExactlyOnceOperator):
    """Run SQL in one database, over tables there and the results of queries in other databases.

    Each remote set is a temporary table while the SQL runs; its columns have the remote's types. Everything
    is one transaction of the home database, done exactly once across retries and killed workers. The remotes
    are read at the same time, each in one read-only transaction, and so from one snapshot; the servers have
    no common snapshot.

    At most one of *handler*, *path* and *max_xcom_rows* takes the rows of the last statement. With none of
    them the statements and COMMIT travel as one message, which PostgreSQL finishes even if the worker dies.
    With one of them the rows are delivered before the commit: if the worker dies in between, a retry delivers
    them again.

    :param conn_id: home: Airflow connection of type ``postgres`` or ``dblink``. (templated)
    :param sql: one statement, several, or the path of a ``.sql`` file; without BEGIN, COMMIT and the
        like. (templated)
    :param parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :param remotes: remote sets by the name of their table, read as in SQL: folded to lower case unless in
        double quotes. Each a :class:`~airflow_dblink.core.remote_sets.remote.Remote` or a dict with its
        fields ``conn_id``, ``sql``, ``parameters``, ``indexes``. (templated)
    :param analyze: ANALYZE the temporary tables, so that the planner knows them.
    :param batch_rows: rows per batch, at least 1.
    :param handler: called with each batch, a list of tuples typed by psycopg.
    :param path: URL of a file on Airflow's object storage, written as CSV by PostgreSQL itself; compressed
        if it ends in ``.gz``. (templated)
    :param path_conn_id: Airflow connection of the object storage. (templated)
    :param header: whether the file begins with the column names.
    :param csv_options: options of PostgreSQL's COPY: ``delimiter``, ``null``, ``quote``, ``escape``.
    :param max_xcom_rows: push the rows as a list of lists, if there are at most this many. Values that JSON
        lacks are PostgreSQL's own text; see :mod:`airflow_dblink.core.streams.to_json`.
    :param max_xcom_bytes: limit for the rows in XCom, as JSON; if they take more, the task fails.
    :param orphan_timeout: time that a try waits for the transaction of a killed try, before it cancels that
        and runs the SQL again.
    :param kwargs: arguments of the base operators; also ``base_path``, a folder that *path* must be in, and
        ``file_mode``, the permissions of a file on the worker's disk (``0600``).

    :returns: (XCom) ``sets``: number of rows by the name of the set; ``command_tags`` of the statements. If
        the last statement's rows are delivered, its tag is missing, and the fields of
        :class:`~airflow_dblink.operators.fetch.DblinkFetchOperator` are there. If an earlier try has
        committed, its stored result is returned; it has no tags if no rows were delivered.
    :raises AirflowFailException: for mistakes found before a row moves (no retry helps), for more rows than
        *max_xcom_rows* or bytes than *max_xcom_bytes*, and if the server can't tell whether an earlier
        try has committed.
    :raises RemoteError: a server's errors, naming its connection; home is unchanged then.
    :raises TransientError: the same, if a retry may help.
    :raises DblinkTaskKilledError: after a kill.
    """

    template_fields: Sequence[str] = (
        "conn_id",
        "sql",
        "parameters",
        "remotes",
        "path",
        "path_conn_id",
        "session_settings",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "sql": "postgresql",
        "parameters": "json",
        "remotes": "json",
        "session_settings": "json",
    }
    ui_color = "#e8dcf2"
    _sql_name = "sql"

    def __init__(
        self,
        *,
        remotes: Mapping[str, Remote | Mapping[str, Any]] | None = None,
        analyze: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.remotes = remotes
        self.analyze = analyze
        check_known(self)

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        """Do the same as the base class, and read the files of the remote sets that are dicts."""
        files: dict[str, str] = {}
        if parent is self and isinstance(self.remotes, dict):
            for name, remote in self.remotes.items():
                text = remote.get("sql") if isinstance(remote, dict) else None
                if isinstance(text, str) and text.endswith(tuple(self.template_ext)):
                    files[name] = text
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        rendered: Any = self.remotes
        for name, path in files.items():
            rendered[name]["sql"] = self.render_template(path, context, jinja_env)

    def _check_early(self) -> None:
        self._demand_values("conn_id", "sql")
        demand_script(self.sql, self.conn_id, alternative=_ALTERNATIVE)
        sink = self._row_sink(self.conn_id)
        if sink.given:
            sink.demand_place()
            self._demand_rows(sink.given[0])
        remotes_by_table(self.remotes)

    def _demand_rows(self, place: str) -> None:
        """Raise unless the last statement is a query: its rows go to *place*."""
        last = parts(self.sql)[-1]
        if why := _why_no_cursor(last):
            raise UsageError(
                f"the last statement (line {last.line}) {why}, but {place} wants a query's rows",
                self.conn_id,
                hint="end the script with SELECT, VALUES or TABLE; put statements that change data before it",
            )

    def execute(self, context: Context) -> dict[str, Any]:
        """Fetch the remote sets and run the SQL; the counts become the XCom return value."""
        with self._errors_for_airflow():
            self._check_early()
            sink = self._row_sink(self.conn_id)
            sink.demand_file()
            remotes = remotes_by_table(self.remotes)
            with self._hook(self.conn_id) as hook:
                link = hook.link()
                once = self._once(context, link.connection, self.conn_id)
                result = self._recall(context, hook, once)
                if result is not None:
                    self.log.info("An earlier try has committed: nothing is run.")
                else:
                    script = self._bound(link)
                    sets = self._fetch(hook, once, remotes, for_cursor=bool(sink.given))
                    if sink.given:
                        result = self._deliver(link, once, script, sets, sink)
                    else:
                        result = self._run(context, once, script, sets)
                self._check()
                once.finish(result)
                self._tell_assets(context, result)
                return result

    def _remote_queries(self) -> Mapping[str, tuple[str, str]]:
        return {name: (each.conn_id, each.sql) for name, each in remotes_by_table(self.remotes).items()}

    def _fetch(
        self, hook: DblinkHook, once: Once, remotes: Mapping[str, Remote], *, for_cursor: bool
    ) -> dict[str, int]:
        """Begin the transaction and bring the remote sets into it; return their numbers of rows."""
        more = HANDED_ON if for_cursor else {}
        settings = self._settings(once.connection, self.conn_id, **more)
        home = Side(once.connection, self.conn_id)
        started = time.monotonic()
        with hook.remote_sides(remote.conn_id for remote in remotes.values()) as sources:
            source_settings = {c: self._settings(side.connection, c) for c, side in sources.items()}
            begin(home, "BEGIN READ ONLY", settings, "checking the remote sets")
            sets = prepare(home, remotes, sources, source_settings)
            home.run("ROLLBACK", "checking the remote sets")
            once.begin(settings)
            self.log.info("Transaction %s on %s", once.xid, self.conn_id)
            progress = _Progress(self.log)
            kept = parse_session_settings(self.conn_id, self.session_settings)
            counts = attach(home, sets, progress.report, analyze=self.analyze, settings=kept)
        for name, rows in counts.items():
            where = remotes[name].conn_id
            self.log.info("%s: %s rows from %s, %.1f MB", name, f"{rows:,}", where, progress.mb(name))
        if counts:
            self.log.info("Remote sets are there after %.1f s", time.monotonic() - started)
        return dict(zip(self.remotes or {}, counts.values(), strict=True))

    def _run(self, context: Context, once: Once, script: UserText, sets: Mapping[str, int]) -> dict[str, Any]:
        """Run the script and commit, as one message."""
        result: dict[str, Any] = {"sets": sets, "command_tags": []}
        once.keep(result)
        tags = self._run_as_one(context, once, script)
        self.log.info("Committed: %s", ", ".join(tags))
        return {**result, "command_tags": tags}

    def _deliver(
        self, link: Link, once: Once, script: UserText, sets: Mapping[str, int], sink: RowSink
    ) -> dict[str, Any]:
        """Run the statements before the last one, deliver the last one's rows, and commit."""
        statements = parts(script.text)
        last = statements[-1]
        tags = once.execute(script.part(0, last.start)) if len(statements) > 1 else []
        delivered = sink.deliver(link, script.part(last.start, last.end))
        result = {"sets": sets, "command_tags": tags, **delivered}
        self._check()
        once.commit(result)
        self.log.info("Delivered %s, and committed", sink.told(result))
        return result


def _why_no_cursor(part: Part) -> str | None:
    if other := no_query([part]):
        return f"is {other}"
    if "INTO" in part.outer_words:
        return "makes a table (INTO)"
    follows = zip(part.words, part.words[1:], strict=False)
    if any(pair[0] in _BEFORE_CTE and pair[1] in _CHANGES for pair in follows) and _CHANGING_CTE.search(
        part.text
    ):
        return "changes data in its WITH"
    return None


class _Progress:
    """Logs every few seconds how many rows of the sets have come."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._said = time.monotonic()
        self._sets: dict[str, tuple[int, int]] = {}

    def report(self, name: str, rows: int, size: int) -> None:
        """Note how many rows and bytes of one set have come."""
        self._sets[name] = (rows, size)
        if (now := time.monotonic()) - self._said < _REPORT_EVERY_S:
            return
        self._said = now
        so_far = ", ".join(f"{name} {rows:,} rows" for name, (rows, _) in self._sets.items())
        self._log.info("So far: %s, %.1f MB", so_far, sum(size for _, size in self._sets.values()) / _MB)

    def mb(self, name: str) -> float:
        """Return how many megabytes of a set have come."""
        return self._sets.get(name, (0, 0))[1] / _MB
