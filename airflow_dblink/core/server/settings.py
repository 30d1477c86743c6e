"""The run-time parameters that shape values as text: the same in two sessions, and for all rows handed on."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_dblink.core.server.connection import set_config
from airflow_dblink.core.tables.catalog import Side

#: What shapes values as text: pinned alike on both sides.
TEXT_FORMS = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",  # read by binary input too
}
#: For a transaction whose rows are handed on. The order of day and month stays the session's: it decides how
#: the query's own ``'01/02/2026'`` is read. All rows are read, so the planner must not favour the first, as
#: it does for cursors.
HANDED_ON = {**TEXT_FORMS, "datestyle": "ISO", "cursor_tuple_fraction": "1"}


def set_local(side: Side, settings: Mapping[str, str]) -> None:
    """Apply :data:`TEXT_FORMS` and *settings* to the transaction that is open on *side*.

    :raises RemoteError: what the server says.
    """
    local = {**TEXT_FORMS, **settings, "standard_conforming_strings": "on"}
    side.run(set_config(local.items(), local=True), "setting up the transaction")
