"""How far a load has come: all of its parts together, whoever has copied them."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql

from airflow_dblink.core.parts.ledger import Ledger
from airflow_dblink.core.server.side import Side


@dataclass(frozen=True)
class SoFar:
    """What the parts that are done have brought.

    :ivar done: how many parts are done.
    :ivar parts: how many there are.
    :ivar seconds: from the beginning of the first one to the end of the last one that is done.
    """

    done: int
    parts: int
    rows: int
    bytes: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """How long the other parts will take, if they come as these have come."""
        return self.seconds * (self.parts - self.done) / self.done


def so_far(destination: Side, ledger: Ledger) -> SoFar | None:
    """Return how far the load has come; ``None`` if no part is done.

    :raises RemoteError: what the server says: 42P01 if the ledger is gone.
    """
    query = sql.SQL(
        "SELECT pg_catalog.count(done) AS done, pg_catalog.count(*) AS parts,"
        " pg_catalog.sum(rows)::pg_catalog.int8 AS rows, pg_catalog.sum(bytes)::pg_catalog.int8 AS bytes,"
        " pg_catalog.date_part('epoch', pg_catalog.max(done) OPERATOR(pg_catalog.-) pg_catalog.min("
        "done OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => seconds))) AS seconds"
        " FROM {} WHERE part OPERATOR(pg_catalog.>) 0"
    ).format(ledger.name)
    (row,) = destination.fetch(query, "asking how far the load has come")
    return SoFar(**row) if row["done"] else None
