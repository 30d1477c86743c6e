"""Calls that connect: results of ``get_conn``, and effects of the connection's fields and of arguments."""

from __future__ import annotations

from typing import Any

import psycopg
from airflow.sdk import BaseHook, Connection
from psycopg.rows import dict_row

from tests.differential.stock_side import Side, add, call


def one(connection: Any, query: str, *parameters: Any) -> Any:
    row = connection.execute(query, parameters or None).fetchone()
    return row[0] if row else None


# -- the result of get_conn


@call
def get_conn_is_psycopgs(side: Side) -> Any:
    return isinstance(side.conn(), psycopg.Connection)


@call
def get_conn_begins_transactions(side: Side) -> Any:
    conn = side.conn()
    conn.execute("INSERT INTO bare VALUES (1)")
    return conn.autocommit, conn.info.transaction_status.name


@call
def get_conn_commits_at_the_end_of_a_block(side: Side) -> Any:
    with side.hook().get_conn() as conn:
        conn.execute("INSERT INTO bare VALUES (1)")
    return conn.closed


@call
def get_conn_rolls_back_at_an_error_in_a_block(side: Side) -> Any:
    with side.hook().get_conn() as conn:
        conn.execute("INSERT INTO bare VALUES (1)")
        raise KeyError("the caller's")


@call
def get_conn_rows_are_tuples(side: Side) -> Any:
    return side.conn().execute("SELECT 1 AS a, 'b' AS b").fetchall()


@call
def get_conn_takes_other_row_factories(side: Side) -> Any:
    return side.conn().cursor(row_factory=dict_row).execute("SELECT 1 AS a").fetchall()


@call
def get_conn_in_binary(side: Side) -> Any:
    return (
        side.conn()
        .cursor(binary=True)
        .execute("SELECT now() - now(), 1.5::numeric, '{1,2}'::int[]")
        .fetchall()
    )


@call
def get_conn_has_server_cursors(side: Side) -> Any:
    with side.conn().cursor("named") as cursor:
        return cursor.execute("SELECT generate_series(1, 10)").fetchmany(3)


@call
def get_conn_has_pipelines(side: Side) -> Any:
    conn = side.conn()
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int", [n]) for n in range(3)]
    return [cursor.fetchone() for cursor in cursors]


@call
def get_conn_has_savepoints(side: Side) -> Any:
    with side.hook().get_conn() as conn:
        with conn.transaction():
            conn.execute("INSERT INTO bare VALUES (1)")
        with conn.transaction(force_rollback=True):
            conn.execute("INSERT INTO bare VALUES (2)")


@call
def get_conn_prepares_what_comes_often(side: Side) -> Any:
    conn = side.conn()
    for n in range(7):
        conn.execute("SELECT %s::int", [n])
    return one(conn, "SELECT count(*) FROM pg_prepared_statements")


@call
def get_conn_prepares_when_asked_to(side: Side) -> Any:
    conn = side.conn()
    conn.execute("SELECT %s::int", [1], prepare=True)
    return one(conn, "SELECT count(*) FROM pg_prepared_statements")


@call
def get_conn_survives_an_error(side: Side) -> Any:
    conn = side.conn()
    try:
        conn.execute("SELECT 1/0")
    except psycopg.errors.DivisionByZero:
        conn.rollback()
    return one(conn, "SELECT 1")


@call
def get_conn_survives_a_parameter_that_cannot_be_adapted(side: Side) -> Any:
    conn = side.conn()
    conn.execute("INSERT INTO bare VALUES (1)")
    try:
        conn.execute("SELECT %s", [object()])
    except psycopg.ProgrammingError:
        conn.commit()
    return conn.closed


@call
def get_conn_survives_a_lone_surrogate(side: Side) -> Any:
    conn = side.conn()
    conn.execute("INSERT INTO bare VALUES (1)")
    try:
        conn.execute("SELECT %s", ["\ud800"])
    except UnicodeEncodeError:
        conn.commit()
    return conn.closed


@call
def get_conn_survives_a_raising_row_factory(side: Side) -> Any:
    conn = side.conn()
    conn.execute("INSERT INTO bare VALUES (1)")

    def raising(_: Any) -> Any:
        raise KeyError("the caller's")

    try:
        conn.cursor(row_factory=raising).execute("SELECT 1").fetchone()
    except KeyError:
        conn.commit()
    return conn.closed


@call
def get_conn_adapts_a_list_of_dicts(side: Side) -> Any:
    return side.conn().execute("SELECT %s", [[{"a": 1}]]).fetchone()


# -- fields of the connection


def _cursor(kind: str) -> Any:
    return lambda side: side.conn({"extra": {"cursor": kind}}).execute("SELECT 1 AS a").fetchall()


for _kind in ("dictcursor", "realdictcursor", "namedtuplecursor", "nope"):
    add(f"extra cursor {_kind}", _cursor(_kind))


@call
def extra_goes_to_libpq(side: Side) -> Any:
    conn = side.conn({"extra": {"connect_timeout": 7, "application_name": "mine", "keepalives_idle": "30"}})
    parameters = conn.info.get_parameters()
    return {name: parameters[name] for name in ("connect_timeout", "application_name", "keepalives_idle")}


@call
def extra_unknown_key(side: Side) -> Any:
    return side.conn({"extra": {"nope": "1"}})


@call
def extra_autocommit(side: Side) -> Any:
    return side.conn({"extra": {"autocommit": True}}).autocommit


@call
def extra_prepare_threshold(side: Side) -> Any:
    return side.conn({"extra": {"prepare_threshold": 2}}).prepare_threshold


@call
def extra_client_encoding(side: Side) -> Any:
    conn = side.conn({"extra": {"client_encoding": "LATIN1"}})
    return conn.info.encoding, one(conn, "SHOW client_encoding"), one(conn, "SELECT %s", "\xe4")


@call
def extra_sslmode(side: Side) -> Any:
    return side.conn({"extra": {"sslmode": "disable"}}).info.get_parameters()["sslmode"]


@call
def extra_options(side: Side) -> Any:
    return one(side.conn({"extra": {"options": "-c statement_timeout=7s"}}), "SHOW statement_timeout")


@call
def a_connection_without_password(side: Side) -> Any:
    side.patch.setenv("PGPASSWORD", side.database.params["password"])
    return one(side.conn({"password": None}), "SELECT 1")


@call
def a_session_tells_the_task(side: Side) -> Any:
    with side.hook().get_conn() as conn:
        return one(conn, "SHOW application_name")


# -- connecting fails


@call
def connecting_with_a_wrong_password(side: Side) -> Any:
    return side.conn({"password": "wrong"})


@call
def connecting_where_nobody_listens(side: Side) -> Any:
    return side.conn({"port": 1})


@call
def connecting_to_no_database(side: Side) -> Any:
    return side.conn({"schema": "nope"})


@call
def connecting_with_no_airflow_connection(side: Side) -> Any:
    named: dict[str, Any] = {side.hook_class.conn_name_attr: "nope"}
    return side.conn(**named)


@call
def connecting_over_tls_that_is_not_there(side: Side) -> Any:
    return side.conn({"extra": {"sslmode": "require"}})


# -- arguments of the hook


@call
def hook_of_a_positional_id(side: Side) -> Any:
    return side.hook_class(side.connection()).get_first("SELECT 1")


@call
def hook_of_a_connection(side: Side) -> Any:
    params = side.database.params
    connection = Connection(
        conn_id="given",
        conn_type=side.hook_class.conn_type,
        host=params["host"],
        port=int(params["port"]),
        login=params["user"],
        password=params["password"],
        schema=params["dbname"],
    )
    return side.hook_class(connection=connection).get_first("SELECT current_database()")


@call
def hook_of_a_subclass_that_finds_its_connection(side: Side) -> Any:
    side.connection("other")
    there = BaseHook.get_connection("other")
    made = type("Mine", (side.hook_class,), {"get_connection": classmethod(lambda cls, conn_id: there)})
    return made(**{side.hook_class.conn_name_attr: "nowhere"}).get_first("SELECT current_database()")


@call
def hook_of_a_subclass_with_an_id_of_its_own(side: Side) -> Any:
    made = type("Mine", (side.hook_class,), {"conn_name_attr": "mine", "default_conn_name": "shop"})
    side.connection()
    return made().get_first("SELECT 1"), made(mine="shop").get_first("SELECT 2")


@call
def hook_of_a_subclass_that_sets_conn_id(side: Side) -> Any:
    name = side.hook_class.conn_name_attr

    class Mine(side.hook_class):  # type: ignore[misc, name-defined]
        def __init__(self, conn_id: str) -> None:
            super().__init__(**{name: conn_id})
            self.conn_id = conn_id

    return Mine(side.connection()).get_first("SELECT 1")


@call
def hook_with_a_database(side: Side) -> Any:
    return side.hook(database="postgres").get_first("SELECT current_database()")


@call
def hook_with_options(side: Side) -> Any:
    return side.hook(options="-c statement_timeout=8s").get_first("SHOW statement_timeout")


@call
def hook_with_log_db_messages(side: Side) -> Any:
    hook = side.hook(enable_log_db_messages=True)
    said: list[str] = []
    side.patch.setattr(
        hook.log, "info", lambda message, *args: said.append(str(message) % args if args else str(message))
    )
    hook.run("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    return [message for message in said if "hello" in message and "DO" not in message]


@call
def hook_takes_unknown_arguments(side: Side) -> Any:
    return side.hook(nope=1).get_first("SELECT 1")


@call
def hook_get_conn_id(side: Side) -> Any:
    return side.hook().get_conn_id()


@call
def hook_connection(side: Side) -> Any:
    found = side.hook().connection
    return found.conn_id, found.host, found.schema


@call
def hook_of_get_hook(side: Side) -> Any:
    return isinstance(BaseHook.get_hook(side.connection()), side.hook_class)


@call
def hook_set_autocommit(side: Side) -> Any:
    hook, conn = side.hook(), side.conn()
    hook.set_autocommit(conn, True)
    return hook.get_autocommit(conn), conn.autocommit, hook.supports_autocommit


@call
def hook_get_cursor(side: Side) -> Any:
    cursor = side.hook().get_cursor()
    side.opened.append(cursor.connection.close)
    return cursor.execute("SELECT 1").fetchall()


@call
def hook_test_connection(side: Side) -> Any:
    return side.hook().test_connection()


@call
def hook_test_connection_with_a_wrong_password(side: Side) -> Any:
    fine, message = side.hook({"password": "wrong"}).test_connection()
    return fine, "password authentication failed" in message
