"""Run-time parameters that shape values as text: the same in two sessions, and for all rows handed on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg import sql

#: Run-time parameters by name: a text each, or an expression that the server evaluates.
Settings = Mapping[str, str | sql.Composable]

#: Parameters that shape values as text: set to the same values on both sides.
TEXT_FORMS = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",  # read by binary input too
}
#: For a transaction whose rows are handed on. The order of day and month stays the session's, since it
#: decides how the query's own ``'01/02/2026'`` is read. All rows are read, so the planner must
#: not favour the first rows, as it does for cursors.
HANDED_ON = {**TEXT_FORMS, "datestyle": "ISO", "cursor_tuple_fraction": "1"}


def set_config(settings: Iterable[tuple[str, str | sql.Composable]], *, local: bool) -> sql.Composed:
    """Return the statement that sets run-time parameters, *local* to the transaction or for the session."""
    calls = [
        sql.SQL("pg_catalog.set_config({}, {}, {})").format(name, value, local) for name, value in settings
    ]
    return sql.SQL("SELECT ") + sql.SQL(", ").join(calls)
