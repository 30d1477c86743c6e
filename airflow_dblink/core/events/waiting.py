"""The question whether events wait for a run, for the triggerer's shared session."""

from __future__ import annotations

import json
import re

from psycopg import sql

from airflow_dblink.core.errors import DblinkError, RemoteError
from airflow_dblink.core.events.install import not_usable
from airflow_dblink.core.events.table import Events
from airflow_dblink.core.gates.question import Question
from airflow_dblink.core.installed.trust import distrust, fragments
from airflow_dblink.core.sql.named import statements

_SQL = statements("events.sql")
_MISSING = ("42P01", "3F000")
_NO_BOOL = "22P02"  # the finding, as the text of a bool
_FINDING = re.compile(r'"(\{.*\})"$', re.DOTALL)


def unclaimed(events: Events, last: str = "-", *, trusted_owners: tuple[str, ...] = ()) -> Question:
    """Return the question whether other events wait than those when the answer was *last*.

    Its answer is a text that stands for the waiting events, ``-`` for none; NULL if nothing has changed.
    Before it reads our table, it asks whether the table is trusted, and fails if not.

    :raises UsageError: if there is no topic.
    """
    events.demand_topic()
    query = sql.SQL(_SQL["unclaimed"]).format(**events.parts(), last=sql.Literal(last)).as_string()
    if events.own is not None:
        return Question(query)
    trusted = sql.SQL(_SQL["trusted"]).format(**fragments(events.installed, trusted_owners)).as_string()
    settings = (("search_path", "pg_catalog, pg_temp"),)
    return Question(query, failure=trusted, settings=settings)


def explained(error: DblinkError, events: Events, conn_id: str) -> DblinkError:
    """Return the error of the question; for our own table in words that tell what to do."""
    if events.own is not None or not isinstance(error, RemoteError):
        return error
    if error.sqlstate in _MISSING:
        return not_usable("is not there", events.installed, conn_id)
    if error.sqlstate != _NO_BOOL:
        return error
    found = _FINDING.search(error.message)
    try:
        finding = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        finding = None
    return distrust(finding, conn_id, events.installed)
