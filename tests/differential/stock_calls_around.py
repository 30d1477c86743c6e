"""Calls around rows: data frames, SQLAlchemy, COPY, the catalog, lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy
from airflow.providers.common.sql.operators.sql import SQLExecuteQueryOperator
from sqlalchemy import event

from tests.differential.stock_side import Side, add, call

# -- data frames


def _frame(frame: Any) -> Any:
    """Return the data of a frame of pandas' or polars'."""
    if hasattr(frame, "dtypes") and hasattr(frame.dtypes, "to_dict"):
        return frame.to_dict("list"), {name: str(kind) for name, kind in frame.dtypes.to_dict().items()}
    return frame.to_dict(as_series=False), [str(kind) for kind in frame.dtypes]


_ITEMS = "SELECT id, name, made, price::float8 FROM item ORDER BY id"


def _get(query: str, kind: Any, **fields: Any) -> Any:
    return lambda side: _frame(side.hook(fields).get_df(query, df_type=kind))


def _get_by_chunks(kind: Any) -> Any:
    return lambda side: [
        _frame(frame) for frame in side.hook().get_df_by_chunks(_ITEMS, chunksize=2, df_type=kind)
    ]


for _kind in ("pandas", "polars"):
    add(f"get df {_kind}", _get(_ITEMS, _kind))
    add(f"get df by chunks {_kind}", _get_by_chunks(_kind))
    add(f"get df of an error {_kind}", _get("SELECT 1/0", _kind))
    add(f"get df where nobody listens {_kind}", _get("SELECT 1", _kind, port=1))


@call
def get_df_with_parameters(side: Side) -> Any:
    return _frame(side.hook().get_df("SELECT * FROM item WHERE id = %(id)s", parameters={"id": 2}))


@call
def get_df_of_json_and_arrays(side: Side) -> Any:
    return _frame(side.hook().get_df("SELECT '{\"a\": [1]}'::jsonb AS j, ARRAY[1, 2] AS a, NULL AS n"))


@call
def get_df_of_no_rows(side: Side) -> Any:
    return _frame(side.hook().get_df("SELECT * FROM bare"))


@call
def get_df_with_a_scheme(side: Side) -> Any:
    return _frame(
        side.hook(sqlalchemy_scheme="postgresql+psycopg2").get_df("SELECT id FROM item ORDER BY id")
    )


@call
def get_df_with_sqlalchemy_query(side: Side) -> Any:
    side.database.execute("CREATE SCHEMA other; CREATE TABLE other.item AS SELECT 99 AS id")
    extra = {"sqlalchemy_query": {"options": "-c search_path=other"}}
    try:
        return _frame(side.hook({"extra": extra}).get_df("SELECT id FROM item"))
    finally:
        side.database.execute("DROP SCHEMA other CASCADE")


@call
def to_sql(side: Side) -> Any:
    hook = side.hook()
    hook.get_df(_ITEMS).to_sql("made", side.engine(hook), index=False)


@call
def to_sql_of_texts_into_uuid_by_psycopg2(side: Side) -> Any:
    hook = side.hook(sqlalchemy_scheme="postgresql+psycopg2")
    side.database.execute("CREATE TABLE ids (id uuid)")
    frame = hook.get_df("SELECT 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::text AS id")
    frame.to_sql("ids", side.engine(hook), if_exists="append", index=False)


# -- SQLAlchemy


def _scalar(engine: Any, query: str) -> Any:
    with engine.begin() as connection:
        return connection.execute(sqlalchemy.text(query)).scalar()


@call
def engine_select(side: Side) -> Any:
    return _scalar(side.engine(side.hook()), "SELECT current_database()")


@call
def engine_names_its_driver(side: Side) -> Any:
    engine = side.engine(side.hook())
    return engine.dialect.name, engine.driver


@call
def engine_of_a_scheme_argument(side: Side) -> Any:
    engine = side.engine(side.hook(sqlalchemy_scheme="postgresql+psycopg2"))
    return engine.driver, _scalar(engine, "SELECT 1")


@call
def engine_of_a_scheme_in_extra(side: Side) -> Any:
    engine = side.engine(side.hook({"extra": {"sqlalchemy_scheme": "postgresql+psycopg2"}}))
    return engine.driver, _scalar(engine, "SELECT 1")


@call
def engine_of_a_wrong_scheme(side: Side) -> Any:
    return side.engine(side.hook(sqlalchemy_scheme="mysql"))


@call
def engine_with_connect_args(side: Side) -> Any:
    arguments = {"connect_args": {"options": "-c statement_timeout=6s"}}
    return _scalar(side.engine(side.hook(), engine_kwargs=arguments), "SHOW statement_timeout")


@call
def engine_with_pool_arguments(side: Side) -> Any:
    return side.engine(side.hook(), engine_kwargs={"pool_size": 3}).pool.size()


@call
def engine_with_a_listener_on_connecting(side: Side) -> Any:
    engine, told = side.engine(side.hook()), []
    event.listen(engine, "do_connect", lambda *_: told.append(1))
    return _scalar(engine, "SELECT 1"), len(told)


@call
def engine_with_a_wrong_password(side: Side) -> Any:
    return _scalar(side.engine(side.hook({"password": "wrong"})), "SELECT 1")


@call
def engine_where_nobody_listens(side: Side) -> Any:
    return _scalar(side.engine(side.hook({"port": 1})), "SELECT 1")


@call
def engine_error(side: Side) -> Any:
    return _scalar(side.engine(side.hook()), "SELECT 1/0")


@call
def engine_of_the_uri(side: Side) -> Any:
    engine = sqlalchemy.create_engine(side.hook().get_uri())
    side.opened.append(engine.dispose)
    return _scalar(engine, "SELECT current_database()")


@call
def get_uri(side: Side) -> Any:
    return side.hook().get_uri()


@call
def get_uri_of_another_database(side: Side) -> Any:
    return side.hook(database="other").get_uri()


@call
def get_uri_with_odd_characters(side: Side) -> Any:
    return side.hook({"login": "a/b c", "password": "p@ss:w/rd"}).get_uri()


@call
def get_uri_with_extra(side: Side) -> Any:
    return side.hook({"extra": {"sslmode": "disable"}}).get_uri()


@call
def url_parts(side: Side) -> Any:
    url = side.hook().sqlalchemy_url
    return url.drivername, url.username, url.password, url.host, url.port, url.database, dict(url.query)


@call
def url_with_sqlalchemy_query(side: Side) -> Any:
    url = side.hook({"extra": {"sqlalchemy_query": {"application_name": "x"}}}).sqlalchemy_url
    return dict(url.query)


@call
def url_with_a_wrong_sqlalchemy_query(side: Side) -> Any:
    return side.hook({"extra": {"sqlalchemy_query": "wrong"}}).sqlalchemy_url


@call
def url_with_a_scheme(side: Side) -> Any:
    return side.hook(sqlalchemy_scheme="postgresql+asyncpg").sqlalchemy_url.drivername


@call
def inspector(side: Side) -> Any:
    found = side.hook().inspector
    side.opened.append(found.engine.dispose)
    names = sorted(found.get_table_names())
    return (
        names,
        found.get_pk_constraint("pair")["constrained_columns"],
        [c["name"] for c in found.get_columns("item")],
    )


# -- the catalog


def _dialect(use: Any) -> Any:
    def called(side: Side) -> Any:
        hook = side.hook()
        try:
            return use(hook)
        finally:
            hook.inspector.engine.dispose()

    return called


for _name, _use in {
    "dialect name": lambda hook: (hook.dialect_name, type(hook.dialect).__name__),
    "dialect column names": lambda hook: hook.dialect.get_column_names("pair", "public"),
    "dialect target fields": lambda hook: hook.dialect.get_target_fields("public.item"),
    "dialect primary keys": lambda hook: hook.dialect.get_primary_keys("public.pair"),
    "get table primary key": lambda hook: hook.get_table_primary_key("item"),
    "get table primary key of two columns": lambda hook: hook.get_table_primary_key("pair", "public"),
    "get table primary key of none": lambda hook: hook.get_table_primary_key("bare"),
    "get table primary key of no table": lambda hook: hook.get_table_primary_key("nope"),
    "get table schema": lambda hook: hook.get_table_schema("item"),
    "placeholder": lambda hook: hook.placeholder,
    "reserved words": lambda hook: sorted(hook.reserved_words),
    "schema": lambda hook: getattr(hook, "schema", None),
    "supports executemany": lambda hook: (hook.supports_executemany, hook.supports_autocommit),
}.items():
    add(_name, _dialect(_use))


@call
def placeholder_of_extra(side: Side) -> Any:
    return side.hook({"extra": {"placeholder": "?"}}).placeholder


@call
def get_ui_field_behaviour(side: Side) -> Any:
    return side.hook_class.get_ui_field_behaviour()["relabeling"].get("schema")


# -- COPY


@call
def bulk_load(side: Side) -> Any:
    side.hook().bulk_load("bare", side.file(b"1\ta\n2\t\\N\n"))


@call
def bulk_load_of_a_broken_file(side: Side) -> Any:
    side.hook().bulk_load("bare", side.file(b"1\ta\nx\n"))


@call
def bulk_load_of_no_file(side: Side) -> Any:
    side.hook().bulk_load("bare", side.file())


@call
def bulk_dump(side: Side) -> Any:
    path = side.file()
    side.hook().bulk_dump("item", path)
    return Path(path).read_bytes()


@call
def bulk_dump_of_no_table(side: Side) -> Any:
    side.hook().bulk_dump("nope", side.file())


@call
def bulk_dump_in_another_encoding(side: Side) -> Any:
    side.database.execute("INSERT INTO bare VALUES (1, '\xe4')")
    path = side.file()
    side.hook({"extra": {"client_encoding": "LATIN1"}}).bulk_dump("bare", path)
    return Path(path).read_bytes()


@call
def bulk_load_in_another_encoding(side: Side) -> Any:
    side.hook({"extra": {"client_encoding": "LATIN1"}}).bulk_load("bare", side.file(b"1\t\xe4\n"))


@call
def copy_expert_from(side: Side) -> Any:
    side.hook().copy_expert("COPY bare FROM STDIN WITH (FORMAT csv, HEADER)", side.file(b"id,name\n1,a\n"))


@call
def copy_expert_to(side: Side) -> Any:
    path = side.file()
    side.hook().copy_expert("COPY (SELECT id FROM item ORDER BY id) TO STDOUT WITH CSV HEADER", path)
    return Path(path).read_bytes()


@call
def copy_expert_of_an_error(side: Side) -> Any:
    side.hook().copy_expert("COPY nope TO STDOUT", side.file())


# -- lineage


@call
def openlineage_database_info(side: Side) -> Any:
    hook = side.hook()
    info = hook.get_openlineage_database_info(hook.connection)
    return info.scheme, info.authority, info.database


@call
def openlineage_names(side: Side) -> Any:
    hook = side.hook()
    return hook.get_openlineage_database_dialect(hook.connection), hook.get_openlineage_default_schema()


@call
def openlineage_of_an_operator(side: Side) -> Any:
    sql = "INSERT INTO bare SELECT id, name FROM item"
    found = SQLExecuteQueryOperator(
        task_id="t", conn_id=side.connection(), sql=sql
    ).get_openlineage_facets_on_start()
    assert found
    return [(d.namespace, d.name) for d in (*found.inputs, *found.outputs)]
