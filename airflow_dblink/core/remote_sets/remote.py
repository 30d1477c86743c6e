"""The definition of a remote set: a query of another database whose rows become a temporary table here.

:mod:`airflow_dblink.core.remote_sets.attach` makes the tables.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.server.bind import Params
from airflow_dblink.core.sqltext.rules import the_query
from airflow_dblink.core.sqltext.user_text import UserText

_PLAIN_NAME = re.compile(r"[A-Za-z_\u0080-\U0010ffff][\w$]*")
_QUOTED_NAME = re.compile(r'"((?:[^"]|"")+)"')
_NAME_BYTES = 63  # NAMEDATALEN - 1


@dataclass
class Remote:
    """A query of another database, whose rows become a temporary table.

    :ivar conn_id: Airflow connection of the database to read. (templated)
    :ivar sql: the query, or the path of a ``.sql`` file. (templated)
    :ivar parameters: values for ``%s`` or ``%(name)s`` in *sql*. (templated)
    :ivar indexes: indexes of the temporary table, each a column's name or a list of names.
    """

    conn_id: str
    sql: str
    parameters: Params | None = None
    indexes: Sequence[str | Sequence[str]] = ()

    template_fields: ClassVar[Sequence[str]] = ("conn_id", "sql", "parameters")

    @classmethod
    def of(cls, name: str, given: Remote | Mapping[str, Any]) -> Self | Remote:
        """Return *given*, or the remote set of a mapping with the same keys, as mapped tasks have it.

        :raises UsageError: names a missing or unknown key, or a key whose value has a wrong type.
        """
        remote = given
        if isinstance(remote, Mapping):
            known = {field.name for field in fields(cls)}
            if unknown := sorted(map(str, {*remote} - known)):
                has = "a remote set has conn_id, sql, parameters, indexes"
                raise _wrong(name, f"unknown {unknown[0]!r}; {has}")
            if missing := sorted({"conn_id", "sql"} - {*remote}):
                raise _wrong(name, f"{missing[0]} is missing")
            remote = cls(**remote)
        if not isinstance(remote, Remote):
            raise _wrong(name, f"it must be a Remote or a dict, got {type(given).__name__}")
        for key in ("conn_id", "sql"):
            if not isinstance(value := getattr(remote, key), str) or not value.strip():
                raise _wrong(name, f"{key} must be text, got {type(value).__name__ if value else value!r}")
            if "\0" in value:
                raise _wrong(name, f"{key} holds a NUL character, which PostgreSQL can't take")
        remote.index_columns(name)
        return remote

    def index_columns(self, name: str) -> list[list[str]]:
        """Return the columns of each index.

        :raises UsageError: if *indexes* isn't a list of names or of lists of names.
        """
        indexes: object = self.indexes
        if isinstance(indexes, str) or not isinstance(indexes, Sequence):
            raise _wrong(
                name, f"indexes must be a list, got {indexes!r}", 'indexes=["id", ["year", "month"]]'
            )
        found = [[index] if isinstance(index, str) else index for index in indexes]
        for index in found:
            if not isinstance(index, Sequence) or not index or not all(isinstance(c, str) for c in index):
                raise _wrong(name, f"an index is a column's name or a list of names, got {index!r}")
            if any("\0" in column for column in index):
                raise _wrong(name, f"an index's column holds a NUL character, got {index!r}")
        return [list(index) for index in found]

    def serialize(self) -> dict[str, Any]:
        """Return the set as a dict, which Airflow shows, and which :meth:`of` accepts."""
        return asdict(self)


def _wrong(name: str, why: str, hint: str | None = None) -> UsageError:
    return UsageError(f"remote set {name!r}: {why}", hint=hint)


def remotes_by_table(given: Mapping[str, Remote | Mapping[str, Any]] | None) -> dict[str, Remote]:
    """Return the remotes by the name of their table; raise for mistakes that show without a server.

    :param given: remotes by name. Names are read as in SQL: they become lower case unless in double quotes.
    :raises UsageError: names the wrong set and the mistake.
    """
    if not isinstance(given, Mapping | None):
        raise UsageError(f"remotes must be a dict of names and remote sets, got {type(given).__name__}")
    found: dict[str, Remote] = {}
    for key, value in (given or {}).items():
        name = _table_name(key)
        if name in found:
            raise _wrong(key, f"the name comes twice: {name!r}")
        found[name] = Remote.of(key, value)
        query_text(key, found[name].sql)
    return found


def _table_name(key: object) -> str:
    name = None
    if isinstance(key, str) and "\0" not in key:
        if _PLAIN_NAME.fullmatch(key):
            name = "".join(c.lower() if c.isascii() else c for c in key)
        elif quoted := _QUOTED_NAME.fullmatch(key):
            name = quoted[1].replace('""', '"')
    if name is None:
        raise UsageError(
            f"remote set {key!r}: {key!r} is not a table name",
            sqlstate="42601",
            hint='letters, digits, underscores, and no schema; anything else in double quotes: "My Set"',
        )
    if len(name.encode(errors="surrogatepass")) > _NAME_BYTES:  # PostgreSQL would cut it silently
        raise UsageError(f"remote set {key!r}: the name is longer than {_NAME_BYTES} bytes", sqlstate="42622")
    return name


def query_text(name: str, text: str) -> UserText:
    """Return the query without its semicolon and later comments: COPY puts it in parentheses."""
    if "\0" in text:
        raise _wrong(name, "sql holds a NUL character, which PostgreSQL can't take")
    try:
        part = the_query(text, "sql")
    except UsageError as error:
        raise _wrong(name, error.message, error.hint) from None
    return UserText(text).part(part.start, part.end)
