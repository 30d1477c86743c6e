"""What two sessions must have in common, so that values are written by one as the other reads them."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_dblink.core.connection import set_config
from airflow_dblink.core.tables import Side

#: What shapes values as text: pinned alike on both sides.
TEXT_FORMS = {
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",  # read by binary input too
}


def set_local(side: Side, settings: Mapping[str, str]) -> None:
    """Apply :data:`TEXT_FORMS` and *settings* to the transaction that is open on *side*.

    :raises RemoteError: what the server says.
    """
    local = {**TEXT_FORMS, **settings, "standard_conforming_strings": "on"}
    side.run(set_config(local.items(), local=True), "setting up the transaction")
