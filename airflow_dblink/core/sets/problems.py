"""What is wrong with the tables of a set, in one message: nobody wants a failed run for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from airflow_dblink.core.errors import RemoteError, UsageError

T = TypeVar("T")
R = TypeVar("R")

_MOST_NAMED = 20
_ABORTED = "25P02"


def for_each(tables: Iterable[T], work: Callable[[T], R], name: Callable[[T], str]) -> list[R]:
    """Do *work* for each of the tables, also after one that can't be used; return what came of it.

    :param name: of a table, for errors.
    :raises UsageError: names all tables that can't be used, each with the reason; that of one table alone is
        raised as it is.
    """
    tables = list(tables)
    done: list[R] = []
    problems: list[tuple[T, UsageError]] = []
    for table in tables:
        try:
            done.append(work(table))
        except UsageError as error:
            problems.append((table, error))
        except RemoteError as error:
            if not problems or error.sqlstate != _ABORTED:
                raise
            break  # what was wrong with a table before has ended the transaction
    if not problems:
        return done
    first = problems[0][1]
    if len(tables) == 1:
        raise first
    named = [f"{name(table)}: {error.message}" for table, error in problems[:_MOST_NAMED]]
    if len(problems) > _MOST_NAMED:
        named.append(f"and {len(problems) - _MOST_NAMED} more tables")
    raise UsageError(
        f"{len(problems)} of {len(tables)} tables can't be used: {'; '.join(named)}",
        first.connname if len({error.connname for _, error in problems}) == 1 else None,
        first.sqlstate if len({error.sqlstate for _, error in problems}) == 1 else None,
        hint=first.hint if len({error.hint for _, error in problems}) == 1 else None,
    )
