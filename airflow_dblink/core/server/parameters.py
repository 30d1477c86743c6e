"""How the server reads each parameter of a statement: as an array, as JSON, or as another type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import pq
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.types.json import Json, Jsonb

from airflow_dblink.core.server.connection import LinkConnection
from airflow_dblink.core.server.own_sql import ask
from airflow_dblink.core.sql.named import statements

_SQL = statements("parameters.sql")


@dataclass(frozen=True)
class Structure:
    """The type of a parameter, as far as it matters for Python's lists.

    :ivar is_array: whether it is an array, or a domain over one.
    :ivar json: ``json`` or ``jsonb`` if it, or the array's element, is of that type or a domain over it.
    """

    is_array: bool
    json: str | None

    def adapted(self, value: object) -> Any:
        """Return *value* in the form that psycopg needs; *value* itself if psycopg already sends it right.

        A list becomes an array, whose elements may be JSON, or JSON. A number or a boolean becomes JSON
        for a parameter that is JSON; a text is then taken as the text of some JSON.
        """
        wrap = Jsonb if self.json == "jsonb" else Json
        if self.is_array:
            if self.json is None or not isinstance(value, list):
                return value
            return [element if element is None else wrap(element) for element in value]
        if self.json is not None and isinstance(value, list | dict | int | float):
            return wrap(value)
        return value


def structures_of_parameters(connection: LinkConnection, statement: bytes) -> list[Structure]:
    """Return the types of the parameters ``$1``, ``$2``, ... of *statement*, which isn't executed.

    :param connection: outside of a transaction, or in one of psycopg's that is idle.
    :raises psycopg.Error: the server's errors in the statement.
    """
    with connection.transaction():  # behind a pooler all messages then go to one server
        pgconn = connection.pgconn
        pgconn.send_prepare(b"", statement)
        _result(connection)
        pgconn.send_describe_prepared(b"")
        described = _result(connection)
        types = [described.param_type(position) for position in range(described.nparams)]
        rows = ask(connection, _SQL["structures"], {"types": types})
    return [Structure(**row) for row in rows]


def _result(connection: LinkConnection) -> pq.abc.PGresult:
    result: pq.abc.PGresult = connection.wait(execute(connection.pgconn))[-1]
    if result.status == pq.ExecStatus.FATAL_ERROR:
        raise error_from_result(result, encoding=connection.info.encoding)
    return result
