"""Objects that a stranger can put into a schema on a role's search_path, for every name that our SQL may use.

Operators for each pair of types; functions and aggregates that fit other types better than PostgreSQL's own
of the same name; casts; and types, relations and exact copies, which matter if the path names pg_catalog
behind the stranger's schema. Each of them writes a line to the server's log when it runs: no rollback undoes
a line there, and no read-only transaction refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier

import airflow_dblink
from airflow_dblink.embedded.server import Server

STRANGER = "dblink_stranger"
_MARK = "planted thing called"

# Types in our SQL; operators are made for each pair of them.
_TYPES = (
    *("bool", "bytea", "char", "name", "int8", "int2", "int4", "regproc", "text", "oid", "tid", "xid"),
    *("oidvector", "int2vector", "json", "jsonb", "float4", "float8", "numeric", "date", "timestamp"),
    *("timestamptz", "interval", "uuid", "xid8", "regclass", "regtype", "regnamespace", "regrole"),
    *("varchar", "bpchar", "bit", "pg_lsn", "_text", "_name", "_oid", "_int2", "_int4", "_int8", "_char"),
)
_PSEUDO_TYPES = ("anyarray", "anyelement", "anyenum", "record")
_COMPARE = ("=", "<>", "<", "<=", ">", ">=", "~~", "*<>")
_RECKON = ("+", "-", "%", "&", ">>", "||", "#>>")
_CALLED = re.compile(r"\b([a-z_0-9]+)\s*\(")
_BUILT_IN = """
SELECT p.proname, p.prokind, p.proretset, r.typname,
       ARRAY(SELECT t.typname FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)
               JOIN pg_type AS t ON t.oid = a.type ORDER BY a.n)
  FROM pg_proc AS p JOIN pg_type AS r ON r.oid = p.prorettype
  LEFT JOIN pg_aggregate AS g ON g.aggfnoid = p.oid
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY (%s) AND p.prokind IN ('f', 'a')
   AND coalesce(g.aggkind, 'n') = 'n' AND NOT (p.proargtypes::oid[] && '{cstring,internal}'::regtype[]::oid[])
 ORDER BY p.oid"""

Signature = tuple[str, tuple[str, ...]]


@contextmanager
def as_stranger(admin_conninfo: str) -> Iterator[psycopg.Connection]:
    """Give a session of a role that may create in ``public`` of a database, and nothing else."""
    with psycopg.connect(admin_conninfo, autocommit=True) as admin:
        if not admin.execute("SELECT FROM pg_roles WHERE rolname = %s", [STRANGER]).rowcount:
            admin.execute(SQL("CREATE ROLE {}").format(Identifier(STRANGER)))
        admin.execute(SQL("GRANT CREATE, USAGE ON SCHEMA public TO {}").format(Identifier(STRANGER)))
        admin.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")
        admin.execute(SQL("SET ROLE {}").format(Identifier(STRANGER)))
        yield admin


def plant(server: Server, dbname: str) -> None:
    """Fill ``public`` of a database as the stranger."""
    with as_stranger(server.conninfo(dbname=dbname, superuser=True)) as stranger:
        stranger.execute("SET search_path = pg_catalog")
        stranger.execute("SET check_function_bodies = off")
        built_in = stranger.execute(_BUILT_IN, [_names()]).fetchall()
        catalogs = stranger.execute(
            "SELECT relname FROM pg_class"
            " WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')"
        ).fetchall()
        statements = [*_operators(), *_functions(built_in), *_casts(), *_types(), *_relations(catalogs)]
        for first in range(0, len(statements), 500):
            stranger.execute("; ".join(statements[first : first + 500]).encode())


def called(server: Server, offset: int, dbname: str) -> list[str]:
    """Return the log's lines of planted objects that have run since the log had *offset* bytes."""
    with server.log.open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").splitlines()
    return [line for line in lines if _MARK in line and f"@{dbname}/" in line]


def _names() -> list[str]:
    """Return all words of the package's source that look like the name of a called function."""
    package = Path(airflow_dblink.__file__).parent
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".sql")]
    return sorted({name for path in files for name in _CALLED.findall(path.read_text(encoding="utf-8"))})


def _type(name: str) -> str:
    return f'pg_catalog."{name}"'


def _function(name: str, arguments: Sequence[str], returns: str, what: str, value: str = "NULL") -> str:
    given = ", ".join(map(_type, arguments))
    return (
        f'CREATE FUNCTION public."{name}"({given}) RETURNS {_type(returns)} LANGUAGE plpgsql AS'
        f" $body$BEGIN RAISE LOG '{_MARK}: {what}, as %: %', current_user, pg_catalog.current_query();"
        f" RETURN {value}; END$body$"
    )


def _operators() -> Iterator[str]:
    types = (*_TYPES, *_PSEUDO_TYPES)
    for right in types:
        returns = right if right in _TYPES else "int8"
        yield _function("planted_prefix", [right], returns, f"-{right}")
        yield f"CREATE OPERATOR public.- (FUNCTION = public.planted_prefix, RIGHTARG = {_type(right)})"
        for left in types:
            returns = left if left in _TYPES else "text"
            yield _function("planted_compare", [left, right], "bool", f"{left} compared with {right}", "true")
            yield _function("planted_reckon", [left, right], returns, f"{left} reckoned with {right}")
            for operators, function in ((_COMPARE, "planted_compare"), (_RECKON, "planted_reckon")):
                for operator in operators:
                    yield (
                        f"CREATE OPERATOR public.{operator} (FUNCTION = public.{function},"
                        f" LEFTARG = {_type(left)}, RIGHTARG = {_type(right)})"
                    )


def _signatures(arguments: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield *arguments*, and all that have another type in one place."""
    for i in range(len(arguments)):
        for other in _TYPES:
            yield (*arguments[:i], other, *arguments[i + 1 :])
    yield tuple(arguments)


def _functions(built_in: Iterable[tuple[str, str, bool, str, list[str]]]) -> Iterator[str]:
    made: set[Signature] = set()
    for name, kind, _, returns, arguments in built_in:
        for signature in _signatures(arguments):
            if (name, signature) in made or "any" in signature:
                continue
            made.add((name, signature))
            if kind == "a":
                yield from _aggregate(name, signature)
            else:
                simple = returns if returns in _TYPES else "text"
                yield _function(name, signature, simple, f"{name}({', '.join(signature)})")


def _aggregate(name: str, signature: tuple[str, ...]) -> Iterator[str]:
    step = f"planted_{name}_{'_'.join(signature)}"[:63]
    given = ", ".join(map(_type, signature)) or "*"
    yield _function(step, ["int8", *signature], "int8", f"{name}({', '.join(signature)})", "$1")
    yield f'CREATE AGGREGATE public."{name}"({given}) (SFUNC = public."{step}", STYPE = int8, INITCOND = 0)'


def _casts() -> Iterator[str]:
    """Yield casts from and to the stranger's own type: a stranger may make no others."""
    yield "CREATE TYPE public.planted AS ENUM ('planted')"
    for name in _TYPES:
        there, back = f"planted_from_{name}", f"planted_to_{name}"
        log = f"$body$BEGIN RAISE LOG '{_MARK}: a cast with {name}'; RETURN NULL; END$body$"
        for function, given, result in (
            (there, _type(name), "public.planted"),
            (back, "public.planted", _type(name)),
        ):
            yield f'CREATE FUNCTION public."{function}"({given}) RETURNS {result} LANGUAGE plpgsql AS {log}'
            yield f'CREATE CAST ({given} AS {result}) WITH FUNCTION public."{function}"({given}) AS IMPLICIT'


def _types() -> Iterator[str]:
    yield _function("planted_type", ["text"], "bool", "the check of a type", "true")
    for name in _TYPES:
        if not name.startswith("_"):
            yield (
                f'CREATE DOMAIN public."{name}" AS {_type(name)}'
                f" CHECK (public.planted_type(CAST('{name}' AS {_type('text')})))"
            )


def _relations(catalogs: Iterable[tuple[str]]) -> Iterator[str]:
    yield from (f'CREATE TABLE public."{name}" ()' for (name,) in catalogs)
