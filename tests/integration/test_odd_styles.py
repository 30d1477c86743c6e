"""Remotes whose role, database or session has another DateStyle, IntervalStyle, TimeZone: values stay right.

Nothing is set on the remote to prevent that, as in dblink, whose extension is the measure in places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import Format
from psycopg.types.composite import CompositeInfo, register_composite

from airflow_dblink.core.errors import RemoteError
from airflow_dblink.core.link.registry import Links
from airflow_dblink.core.server import text_styles as styles
from airflow_dblink.embedded.server import Server
from airflow_dblink.hooks.dblink import DblinkHook
from tests.conftest import AddConnection
from tests.databases import Database, new_database
from tests.odd import WAYS, always, linked

Rows = list[tuple[Any, ...]]

DATE_STYLES = [
    f"{style}, {order}" for style in ("ISO", "SQL", "Postgres", "German") for order in ("DMY", "MDY", "YMD")
]
ODD_DATE_STYLES = ["SQL, DMY", "SQL, MDY", "Postgres, DMY", "Postgres, MDY", "German, DMY"]
INTERVAL_STYLES = ["postgres", "postgres_verbose", "sql_standard", "iso_8601"]


@contextmanager
def usual(database: Database, timezone: str = "Europe/Berlin") -> Iterator[psycopg.Connection[Any]]:
    """Give a session of psycopg's own in the usual styles, whatever the role or the database has."""
    options = f"-c datestyle=ISO -c intervalstyle=postgres -c timezone={timezone}"
    with psycopg.connect(database.conninfo, options=options, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def dated(pair: tuple[Server, Server]) -> Iterator[Database]:
    """Give a database with moments and intervals, which no test changes."""
    with new_database(pair[0], "dated") as database:
        database.execute(
            "CREATE TYPE event AS (at timestamptz, d date, ts timestamp, took interval, note text)"
        )
        database.execute("CREATE TABLE moment AS SELECT unnest(%s::timestamptz[]) AS m", _MOMENTS)
        database.execute(_INTERVALS)
        yield database


def assert_same(found: Rows, truth: Rows) -> None:
    assert found == truth
    assert repr(found) == repr(truth)  # zones and folds, too


# -- dates and times

_TYPES = ["date", "time", "timetz", "timestamp", "timestamptz"]
_MOMENTS = [
    "2021-06-02 03:04:05.5+00",
    "2021-12-31 23:59:59.999999+00",
    "2021-03-04 05:06:07+00",
    "2021-10-31 00:30:00.000001+00",  # an hour that comes twice in Berlin: summer time
    "2021-10-31 01:30:00+00",  # and winter time
    "2021-03-28 00:59:59+00",
    "2500-07-01 12:00:00+00",
    "9999-12-30 22:00:00.04+00",
    "0999-02-03 12:00:00+00",  # with local mean time
    "0011-12-10 09:08:07+00",
]


def _moments() -> str:
    """Return a query for every date and time type, alone, in arrays, (multi)ranges and composites."""
    columns = [f"m::{name}, ARRAY[m::{name}, NULL, m::{name}], ARRAY[[m::{name}]]" for name in _TYPES]
    columns += [
        f"{prefix}range(m::{name}, NULL), {prefix}range(m::{name}, m::{name}, '[]'), "
        f"{prefix}multirange({prefix}range(NULL, m::{name})), ARRAY[{prefix}range(m::{name}, NULL)]"
        for prefix, name in (("date", "date"), ("ts", "timestamp"), ("tstz", "timestamptz"))
    ]
    columns += ["ROW(m, m, m, m - '2021-01-01 00:00+00', 'at, \"once\"')::event", "NULL::timestamptz"]
    return " ".join(["SELECT", ", ".join(columns), "FROM moment ORDER BY moment.m"])


def _register_event(connection: psycopg.Connection[Any]) -> None:
    info = CompositeInfo.fetch(connection, "event")
    assert info is not None
    register_composite(info, connection)


@pytest.mark.parametrize("style", DATE_STYLES)
def test_every_date_and_time_type_is_read_in_every_date_style(
    dated: Database, links: Links, style: str
) -> None:
    with usual(dated) as connection:
        _register_event(connection)
        truth = connection.execute(_moments().encode()).fetchall()
    link = linked(links, dated, DateStyle=style, IntervalStyle="iso_8601", TimeZone="Europe/Berlin")
    _register_event(link.connection)
    assert_same(link.query(_moments()), truth)
    assert_same([row for batch in link.batches(_moments(), None, 3) for row in batch], truth)
    for row in truth:  # and back again
        moment, day, wall = row[-2].at, row[-2].d, row[-2].ts
        assert link.query(
            "SELECT %s = %s::timestamptz, %s = %s::date, %s = %s::timestamp, m::text"
            " FROM moment WHERE m = %s",
            [moment, moment.isoformat(), day, day.isoformat(), wall, wall.isoformat(), moment],
        ) == [(True, True, True, *link.query("SELECT %s::text", [moment])[0])]


@pytest.mark.parametrize(
    ("zone", "moments"),
    [
        ("America/New_York", ["2021-11-07 05:30+00", "2021-11-07 06:30+00", "1900-01-01 12:00+00"]),
        ("Australia/Lord_Howe", ["2021-04-03 14:45+00", "2021-04-03 15:15+00"]),  # half an hour, +11 or +1030
        ("America/Sao_Paulo", ["2021-06-02 03:04:05.5+00", "2018-02-18 01:30+00", "2018-02-18 02:30+00"]),
        ("Asia/Kathmandu", ["2021-06-02 03:04:05.5+00", "1985-12-31 18:29:59+00"]),
        ("Africa/Monrovia", ["1971-06-01 12:00+00", "1972-01-07 12:00+00"]),  # -00:44:30, then GMT
        ("Pacific/Apia", ["2011-12-30 09:59:59+00", "2011-12-30 10:00+00"]),  # a day that never was
        ("Europe/Moscow", ["2014-10-25 20:59:59+00", "2014-10-25 23:00+00"]),  # MSK all the time
        ("UTC", ["2021-06-02 03:04:05.5+00", "9999-12-31 23:59:59.999999+00", "0001-01-01 00:00+00"]),
        ("Pacific/Kiritimati", ["0001-01-02 00:00+00", "9999-12-31 09:59:59+00", "2021-06-02 11:00+00"]),
        ("Etc/GMT+5", ["2021-06-02 03:04:05.5+00", "9999-12-31 23:30+00"]),  # beyond year 9999 in UTC
        ("3", ["2021-06-02 03:04:05.5+00"]),  # <+03>-03
        ("-5.5", ["2021-06-02 03:04:05.5+00"]),  # <-05:30>+05:30
        ("UTC+3", ["2021-06-02 03:04:05.5+00"]),  # three hours behind of what it prints
        ("<+03>5", ["2021-06-02 03:04:05.5+00"]),  # the same, worse
        ("<A LONG ONE, REALLY>-7:30", ["2021-06-02 03:04:05.5+00"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_printed_zone_becomes_the_right_instant(
    dated: Database, links: Links, zone: str, moments: list[str]
) -> None:
    query = "SELECT unnest(%s::timestamptz[])"
    link = linked(links, dated, TimeZone=zone)
    assert link.query("SHOW DateStyle") == [("ISO, MDY",)]
    truth = link.query(query, [moments])
    assert [moment for (moment,) in truth] == [
        moment for (moment,) in links.get(None).connection.execute(query.encode(), [moments], binary=True)
    ]
    for style in ODD_DATE_STYLES:
        link.exec(sql.SQL("SET DateStyle = {}").format(style))
        assert_same(link.query(query, [moments]), truth)


@pytest.mark.parametrize(
    ("zone", "moment", "reason"),
    [
        ("Europe/Moscow", "2014-10-25 21:30+00", "an hour that comes twice, and both times 'MSK'"),
        ("Europe/Moscow", "2014-10-25 22:30+00", "an hour that comes twice, and both times 'MSK'"),
        ("FOO5BAR", "2021-06-02 00:00+00", "'BAR', which Python doesn't know in time zone 'FOO5BAR'"),
        ("UTC5BAR", "2021-01-02 00:00+00", "'UTC', which Python doesn't know in time zone 'UTC5BAR'"),
    ],
    ids=["twice, summer", "twice, winter", "own zone", "own zone that looks like UTC"],
)
def test_an_instant_that_the_text_does_not_tell_is_an_error_and_no_guess(
    dated: Database, links: Links, zone: str, moment: str, reason: str
) -> None:
    link = linked(links, dated, DateStyle="German", TimeZone=zone)
    with pytest.raises(RemoteError, match=reason) as caught:
        link.query("SELECT %s::timestamptz", [moment])
    assert caught.value.sqlstate == "22000"
    assert "cast the column to text" in str(caught.value)
    assert link.query("SELECT NULL::timestamptz") == [(None,)]
    assert link.query("SET DateStyle = ISO; SELECT %s::timestamptz = %s", [moment, moment]) == [(True,)]


_BEYOND = {
    "infinity": "timestamp too large (after year 10K)",
    "-infinity": "timestamp too small (before year 1)",
    "10000-01-01 00:00+00": "timestamp too large (after year 10K)",
    "294276-12-31 00:00:00.5+00": "timestamp too large (after year 10K)",
    "0044-03-15 00:00+00 BC": "timestamp too small (before year 1)",
}


@pytest.mark.parametrize("style", ["ISO", *ODD_DATE_STYLES])
def test_a_moment_beyond_python_is_the_same_error_in_every_style(
    dated: Database, links: Links, style: str
) -> None:
    link = linked(links, dated, DateStyle=style, TimeZone="Europe/Berlin")
    for moment, words in _BEYOND.items():
        for column in ("%s::timestamptz", "ARRAY[%s::timestamptz]", "tstzrange(NULL, %s, '[]')"):
            query = f"SELECT {column} AS seen"
            with pytest.raises(psycopg.DataError) as theirs:
                link.connection.execute(query.encode(), [moment]).fetchall()
            if not column.startswith("ARRAY"):  # psycopg quotes what follows, too, and then misses the words
                assert str(theirs.value).startswith(words)
            with pytest.raises(RemoteError, match="beyond what Python's type holds") as ours:
                link.query(query, [moment])
            assert ours.value.sqlstate == "22000"
    assert link.query("SELECT 1") == [(1,)]


# -- intervals

_INTERVALS = """
CREATE TABLE i AS
SELECT row_number() OVER () AS n,
       make_interval(months => sign * months, days => days_sign * days, secs => time_sign * secs) AS i
  FROM unnest(ARRAY[0, 1, 10, 12, 14, 3000]) AS months
 CROSS JOIN unnest(ARRAY[0, 1, 3, 40000]) AS days
 CROSS JOIN unnest(ARRAY[0, 0.000001, 0.5, 1, 1.25, 61.789, 14706.7, 360000000]) AS secs
 CROSS JOIN unnest(ARRAY[1, -1]) AS sign
 CROSS JOIN unnest(ARRAY[1, -1]) AS days_sign
 CROSS JOIN unnest(ARRAY[1, -1]) AS time_sign
"""


@pytest.mark.parametrize("style", INTERVAL_STYLES)
def test_intervals_are_read_in_every_interval_style(dated: Database, links: Links, style: str) -> None:
    query = "SELECT i, ARRAY[NULL, i, i], ARRAY[[i], [i]] FROM i ORDER BY n"
    with usual(dated) as connection:
        truth = connection.execute(query.encode()).fetchall()
        binary = connection.execute(query.encode(), binary=True).fetchall()
    assert len(truth) == 6 * 4 * 8 * 8
    assert truth == binary
    link = linked(links, dated, IntervalStyle=style)
    assert_same(link.query(query), truth)
    assert_same([row for batch in link.batches(query, None, 500) for row in batch], truth)
    spans = [row[0] for row in truth[::50]]  # and back again
    assert link.query("SELECT unnest(%s::interval[])", [spans]) == [(span,) for span in spans]
    assert link.query("SELECT " + ", ".join(["%s"] * len(spans)), spans) == [tuple(spans)]


@pytest.mark.parametrize("style", INTERVAL_STYLES)
def test_an_interval_beyond_python_is_an_error_and_not_zero(
    dated: Database, links: Links, style: str
) -> None:
    link = linked(links, dated, IntervalStyle=style)
    infinite = "22000" if link.connection.info.server_version >= 170000 else "22007"  # not known before
    for span, sqlstate in {
        "infinity": infinite,
        "-infinity": infinite,
        "3000000 years": "22000",
        "-3000000 years": "22000",
    }.items():
        for column in ("%s::interval", "ARRAY['1 day', %s::interval]"):
            with pytest.raises(RemoteError) as caught:
                link.query(f"SELECT {column} AS span", [span])
            assert caught.value.sqlstate == sqlstate
    assert link.query("SELECT interval '0', make_interval(months => 1, days => -30)") == [(timedelta(0),) * 2]


# -- where settings come from, and who reads

_FORMS = """
SELECT m::date, m::timestamp, m, m - '2020-01-01 00:00+00', m::date::text, m::text
  FROM moment ORDER BY moment.m
"""


@pytest.mark.parametrize("way", WAYS)
def test_styles_hold_wherever_they_were_set_and_whoever_reads(
    source: Database, add_connection: AddConnection, way: str
) -> None:
    source.execute("CREATE TABLE moment AS SELECT unnest(%s::timestamptz[]) AS m", _MOMENTS)
    settings = {"DateStyle": "German", "IntervalStyle": "sql_standard", "TimeZone": "Europe/Berlin"}
    if way in ("role", "database"):
        always(source, way, **{name: f"'{value}'" for name, value in settings.items()})
    extra = {"session_settings": settings} if way == "session_settings" else {}
    conn_id = add_connection("odd", source, extra=extra)
    with usual(source) as connection:
        truth = [row[:4] for row in connection.execute(_FORMS.encode()).fetchall()]
    begin = "; ".join(f"SET {name} = '{value}'" for name, value in settings.items())
    begin = f"{begin}; " if way == "session" else ""
    with DblinkHook(dblink_conn_id=conn_id) as hook:
        rows = hook.query(begin + _FORMS)  # one message: the style is the one that the SELECT ran under
        assert_same([row[:4] for row in rows], truth)
        assert rows[-1][4:] == ("30.12.9999", "30.12.9999 23:00:00.04 CET")  # text keeps the remote's form
        assert_same([row[:4] for batch in hook.batches(_FORMS, batch_rows=4) for row in batch], truth)
        hook.open("c", _FORMS)
        assert_same([row[:4] for row in hook.fetch("c", 100)], truth)
        hook.close("c")
        hook.exec("BEGIN; SET LOCAL DateStyle = 'SQL, DMY'; SET LOCAL IntervalStyle = postgres_verbose")
        assert_same([row[:4] for row in hook.query(_FORMS)], truth)
        hook.exec("COMMIT")
        assert_same([row[:4] for row in hook.query(_FORMS)], truth)
        assert hook.query("SHOW DateStyle") == [("German, DMY",)]
        if way != "session":
            assert_same([row[:4] for row in hook.get_records(_FORMS)], truth)


@pytest.mark.parametrize("name", ["timestamptz", "interval"])
def test_the_usual_styles_cost_nothing(source: Database, name: str) -> None:
    always(source, DateStyle="'ISO, DMY'", IntervalStyle="postgres")
    oid = psycopg.adapters.types[name].oid
    own = psycopg.adapters.get_loader(oid, Format.TEXT)
    assert own is not None
    with psycopg.connect(source.conninfo) as connection:
        styles.register(connection)
        loader = connection.adapters.get_loader(oid, Format.TEXT)
        assert loader is not None
        found: object = loader(oid, connection)
        # From 17 on there are infinite intervals, which psycopg's loader takes for no time.
        guarded = name == "interval" and connection.info.server_version >= 170000
        assert isinstance(found, own) is not guarded


@pytest.mark.parametrize(
    ("date_style", "interval_style"),
    [
        ("SQL, DMY", "postgres"),
        ("SQL, MDY", "iso_8601"),
        ("Postgres, MDY", "sql_standard"),
        ("German, DMY", "postgres_verbose"),
    ],
)
def test_dblink_reads_the_same(
    source: Database, warehouse: Database, links: Links, date_style: str, interval_style: str
) -> None:
    always(source, DateStyle=f"'{date_style}'", IntervalStyle=interval_style, TimeZone="'Europe/Berlin'")
    query = """
        SELECT m::date, m::date::text, m::time, m::timetz, m::timestamp, m, m::text,
               span, span::text, ARRAY[m::date]
          FROM unnest('{2021-06-02 03:04:05.5+00, 2021-12-31 23:59:59.999999+00}'::timestamptz[]) AS m,
               unnest(ARRAY[make_interval(1, 2, 0, 3, 4, 5, 6.7), make_interval(0, -2, 0, 3, -4, 5, -6.7),
                            make_interval(days => -3, hours => -4), make_interval(0)]) AS span
         ORDER BY 6, 8
    """
    columns = """
        d date, dt text, t time, tz timetz, ts timestamp, m timestamptz, mt text,
        span interval, st text, a date[]
    """
    warehouse.admin("CREATE EXTENSION dblink")
    with psycopg.connect(
        warehouse.admin_conninfo, autocommit=True, options="-c timezone=Europe/Berlin"
    ) as connection:
        call = sql.SQL("SELECT * FROM dblink({}, {}) AS t({})").format(
            source.conninfo, query, sql.SQL(columns)
        )
        theirs = connection.execute(call).fetchall()
    assert len(theirs) == 8
    assert_same(linked(links, source).query(query), theirs)
