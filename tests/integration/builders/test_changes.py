"""Settings, relations and privileges that change between two calls, and transactions."""

from __future__ import annotations

import pytest

from airflow_dblink.core.builders import statements
from airflow_dblink.core.errors import DblinkError
from tests.databases import Database
from tests.integration.builders.sides import TYPES, Sides

SETTINGS = [
    "SET DateStyle = 'German, DMY'",
    "SET IntervalStyle = 'iso_8601'",
    "SET TimeZone = 'Asia/Tokyo'",
    "SET bytea_output = 'escape'",
    "SET extra_float_digits = -3",
    "SET quote_all_identifiers = on",
    "SET search_path = other",
    "SET search_path = other, public",
    "SET search_path = nowhere",
    "SET search_path = ''",
    "SET standard_conforming_strings = off; SET escape_string_warning = off",
    "SET client_encoding = 'LATIN1'",
    "SET row_security = off",
    "SET enable_hashjoin = off; SET enable_mergejoin = off",
    "SET lc_monetary = 'C'",
    "SET default_transaction_read_only = on",
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_changed_between_two_calls(admin: Sides, setting: str) -> None:
    def check() -> None:
        for type_name in ("date", "interval", "timestamptz", "bytea", "float8", "money", "text"):
            admin.check(f"type{list(TYPES).index(type_name)}", [2], ["v"])
        admin.check("foo", [1], ["3"], ["a\\b'"])
        admin.check("foo", [1], ["1"])
        admin.check("public.foo", [1], ["2"])
        admin.check("other.hidden", [1], ["1"])

    check()
    admin.execute(setting)
    check()


# -- what changes between two calls

_CHANGES = {
    "renamed column": "ALTER TABLE t RENAME COLUMN v TO w",
    "renamed key": "ALTER TABLE t RENAME COLUMN id TO key",
    "swapped columns": "ALTER TABLE t RENAME COLUMN v TO x; ALTER TABLE t RENAME COLUMN id TO v;"
    " ALTER TABLE t RENAME COLUMN x TO id",
    "added column": "ALTER TABLE t ADD COLUMN n int DEFAULT 5",
    "dropped column": "ALTER TABLE t DROP COLUMN v",
    "dropped key": "ALTER TABLE t DROP COLUMN id",
    "other type of key": "ALTER TABLE t ALTER COLUMN id TYPE text USING 'k' || id",
    "name as key": "ALTER TABLE t ALTER COLUMN id TYPE name USING id::text",
    "json as key": "ALTER TABLE t DROP CONSTRAINT t_pkey;"
    " ALTER TABLE t ALTER COLUMN id TYPE json USING 'null'",
    "other key": "ALTER TABLE t DROP CONSTRAINT t_pkey; ALTER TABLE t ADD PRIMARY KEY (v, id)",
    "dropped table": "DROP TABLE t",
    "another table": "DROP TABLE t; CREATE TABLE t (a text, id int); INSERT INTO t VALUES ('a', 1)",
    "same table": "DROP TABLE t; CREATE TABLE t (id int, v text); INSERT INTO t VALUES (1, 'new')",
    "view": "DROP TABLE t; CREATE VIEW t AS SELECT 1 AS id, 'view' AS v",
    "sequence": "DROP TABLE t; CREATE SEQUENCE t",
    "index": "DROP TABLE t; CREATE INDEX t ON foo (f1)",
    "renamed table": "ALTER TABLE t RENAME TO t2",
    "other schema": "ALTER TABLE t SET SCHEMA other",
    "shadowed": "CREATE SCHEMA first; CREATE TABLE first.t (z int)",
    "quoting": "SET quote_all_identifiers = on",
    "path": "SET search_path = other",
}


@pytest.mark.parametrize("within", [False, True], ids=["autocommit", "transaction"])
@pytest.mark.parametrize("change", _CHANGES)
def test_change_between_two_calls(database: Database, admin: Sides, change: str, within: bool) -> None:
    def check() -> None:
        for relname in ("t", "public.t", "other.t"):
            for attnum, value in ((1, "1"), (2, "v"), (1, "k1"), (3, "5")):
                if not within:
                    admin.check_pkey(relname)
                    admin.check(relname, [attnum], [value])
                    continue
                for function in ("insert", "delete"):
                    keys = [[value]] * (1 if function == "delete" else 2)
                    admin.execute("BEGIN")
                    theirs = admin.theirs(function, relname, [attnum], *keys)
                    assert admin.ours(function, relname, [attnum], *keys) == theirs
                    admin.execute("ROLLBACK; BEGIN")
                    many = admin.many(function, relname, [attnum], *([key] for key in keys))
                    assert many == (("value", [theirs[1]]) if theirs[0] == "value" else theirs)
                    admin.execute("ROLLBACK")

    admin.execute("SET search_path = first, public")
    database.admin("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v')")
    try:
        check()
        if change in ("quoting", "path"):
            admin.execute(_CHANGES[change])
        else:
            database.admin(_CHANGES[change])
        check()
    finally:
        admin.execute("ROLLBACK")
        database.admin("DROP TABLE IF EXISTS t2, other.t; DROP SCHEMA IF EXISTS first CASCADE")
        for kind, relkind in (("TABLE", "r"), ("VIEW", "v"), ("SEQUENCE", "S"), ("INDEX", "i")):
            if database.admin(
                "SELECT 1 FROM pg_class WHERE oid = to_regclass('t') AND relkind = %s", relkind
            ):
                database.admin(f"DROP {kind} t")


def test_privileges_revoked_and_granted_between_two_calls(database: Database, job: Sides) -> None:
    for statement in (
        "REVOKE SELECT ON foo FROM dblink_job",
        "GRANT SELECT (f1, f2, f3) ON foo TO dblink_job",
        "GRANT SELECT ON foo TO dblink_job",
    ):
        database.admin(statement)
        job.check_pkey("foo")
        job.check("foo", [1], ["1"])
        job.check("foo", [9], [])


@pytest.mark.parametrize(
    "relname",
    [
        "secured",
        "granted_columns",
        "denied_view",
        "denied_mv",
        "denied_seq",
        "closed.t",
        "remote_foo",
        "foo_f2",
        "only_unique",
        "comp",
        "pg_authid",
        "other.hidden",
        "other.foo",
        "parted",
        "no_columns",
        "no_handler",
    ],
)
def test_privileges(job: Sides, relname: str) -> None:
    job.check_pkey(relname)
    for key in ("1", "2"):
        job.check(relname, [1], [key])
    job.check(relname, [9], [])


def test_row_level_security_switched_off_is_the_servers_error(job: Sides) -> None:
    job.execute("SET row_security = off")
    assert job.check("secured", [1], ["1"])[0] == "42501"


def test_own_uncommitted_changes_are_seen(database: Database, admin: Sides) -> None:
    for session in (admin.link.exec, lambda text: admin.session.execute(text.encode())):
        session("BEGIN")
        session("UPDATE foo SET f2 = 'changed' WHERE f1 = 1")
        if session == admin.link.exec:
            ours = [admin.ours("insert", "foo", [1], ["1"], ["1"]) for _ in range(2)]
            many = admin.many("update", "foo", [1], [["1"]])
        else:
            theirs = admin.theirs("insert", "foo", [1], ["1"], ["1"])
            update = admin.theirs("update", "foo", [1], ["1"], ["1"])
        session("ROLLBACK")
    assert ours == [theirs, theirs]
    assert many == ("value", [update[1]])


def test_a_callers_mistake_leaves_the_transaction_usable(admin: Sides) -> None:
    link = admin.link
    link.exec("BEGIN")
    for call in (
        lambda: statements.build_sql_insert(link, "foo", [9], ["1"], ["1"]),
        lambda: statements.build_sql_insert(link, "foo", [1], [], ["1"]),
        lambda: statements.build_sql_insert(link, "foo", [1], ["77"], ["1"]),
        lambda: statements.build_sql_insert_many(link, "foo", [1], [["1"], ["77"]]),
        lambda: statements.build_sql_delete_many(link, "foo", [1], "SELECT 1, 2"),
        lambda: statements.build_sql_insert_many(link, "foo", [1, 2], "SELECT 1"),
        lambda: statements.build_sql_insert_many(link, "foo", [1], [["77"], ["not a number"]]),
        lambda: statements.build_sql_delete(link, "seq", [9], ["1"]),
    ):
        with pytest.raises(DblinkError):
            call()
    assert statements.build_sql_delete(link, "seq", [1], ["1"]) == "DELETE FROM seq WHERE last_value = '1'"
    assert link.exec("COMMIT") == "COMMIT"
