"""The functions of the event schema: emit, and the triggers that tell of a table's changes by its keys."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.databases import Database

_ITEMS = "CREATE TABLE item (id int PRIMARY KEY, secret text)"
_ATTACH = "SELECT airflow_dblink_events.attach('item', 'items')"


def _captured(database: Database) -> list[tuple[Any, ...]]:
    query = "SELECT payload->>'operation', payload->'key' FROM airflow_dblink_events.event"
    return database.rows(f"{query} WHERE topic = 'items' ORDER BY id")


def test_each_change_is_an_event_with_the_key_alone(shop: Database) -> None:
    shop.execute(f"{_ITEMS}; {_ATTACH}")

    shop.execute("INSERT INTO item VALUES (1, 'hidden'), (2, 'hidden')")
    shop.execute("UPDATE item SET secret = 'hidden too' WHERE id = 2")
    shop.execute("DELETE FROM item WHERE id = 1")
    shop.execute("UPDATE item SET id = 3")
    shop.execute("DELETE FROM item WHERE false")
    shop.execute("TRUNCATE item")

    changes = _captured(shop)
    assert changes[:4] == [
        ("INSERT", {"id": "1"}),
        ("INSERT", {"id": "2"}),
        ("UPDATE", {"id": "2"}),
        ("DELETE", {"id": "1"}),
    ]
    assert sorted(changes[4:6], key=str) == [("DELETE", {"id": "2"}), ("INSERT", {"id": "3"})]
    assert changes[6:] == [("TRUNCATE", None)]
    rows = shop.rows("SELECT e::text FROM airflow_dblink_events.event AS e")
    assert not [row for row in rows if "hidden" in row[0]]
    assert shop.rows("SELECT DISTINCT payload->>'table' FROM airflow_dblink_events.event") == [
        ("public.item",)
    ]


def test_upsert_and_copy_are_seen_too(shop: Database) -> None:
    shop.execute(f"{_ITEMS}; {_ATTACH}")
    shop.execute("INSERT INTO item VALUES (1)")
    with psycopg.connect(shop.conninfo, autocommit=True) as connection:
        with connection.cursor().copy("COPY item (id) FROM STDIN") as copy:
            copy.write("2\n3\n")
        connection.execute(
            "INSERT INTO item VALUES (3), (4) ON CONFLICT (id) DO UPDATE SET secret = excluded.secret"
        )

    changes = _captured(shop)
    assert changes[:3] == [("INSERT", {"id": str(i)}) for i in (1, 2, 3)]
    assert sorted(changes[3:], key=str) == [("INSERT", {"id": "4"}), ("UPDATE", {"id": "3"})]


def test_odd_names_and_composite_keys(shop: Database) -> None:
    shop.execute("""
        CREATE SCHEMA "Odd";
        CREATE TABLE "Odd"."t'%" ("a""b" date, "c %s" timestamptz, x text, PRIMARY KEY ("a""b", "c %s"));
        SELECT airflow_dblink_events.attach('"Odd"."t''%"', 'it''s');
        SET datestyle = 'German'; SET timezone = 'UTC';
        INSERT INTO "Odd"."t'%" VALUES ('2026-12-01', '2026-12-01 10:00+00', 'x')
    """)

    query = "SELECT topic, payload->>'table', payload->'key' FROM airflow_dblink_events.event"
    assert shop.rows(query) == [
        ("it's", """"Odd"."t'%\"""", {'a"b': "2026-12-01", "c %s": "2026-12-01 10:00:00+00"})
    ]


def test_partitioned_tables(shop: Database) -> None:
    shop.execute("""
        CREATE TABLE item (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (0) TO (10);
        CREATE TABLE item_2 PARTITION OF item FOR VALUES FROM (10) TO (20)
    """)
    shop.execute(_ATTACH)
    shop.execute("INSERT INTO item VALUES (1), (11); UPDATE item SET id = 12 WHERE id = 1")

    assert sorted(_captured(shop), key=str) == [
        ("DELETE", {"id": "1"}),
        ("INSERT", {"id": "1"}),
        ("INSERT", {"id": "11"}),
        ("INSERT", {"id": "12"}),
    ]


def test_attaching_again_replaces_and_detaching_ends(shop: Database) -> None:
    shop.execute("CREATE TABLE item (id int, n int)")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="has no primary key"):
        shop.execute(_ATTACH)
    with pytest.raises(psycopg.errors.UndefinedColumn, match="has no column nr"):
        shop.execute("SELECT airflow_dblink_events.attach('item', 'items', ARRAY['n', 'nr'])")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 200 bytes"):
        shop.execute("SELECT airflow_dblink_events.attach('item', '', ARRAY['n'])")
    shop.execute("SELECT airflow_dblink_events.attach('item', 'other', ARRAY['id'])")
    shop.execute("SELECT airflow_dblink_events.attach('item', 'items', ARRAY['n', 'id'], wake => false)")

    shop.execute("INSERT INTO item VALUES (1, NULL)")
    shop.execute("SELECT airflow_dblink_events.detach('item'); INSERT INTO item VALUES (2, 2)")

    assert _captured(shop) == [("INSERT", {"id": "1", "n": None})]
    assert shop.rows("SELECT count(*) FROM airflow_dblink_events.event") == [(1,)]


def test_events_are_part_of_the_transaction_and_wake_once(shop: Database) -> None:
    shop.execute(f"{_ITEMS}; {_ATTACH}")
    with (
        psycopg.connect(shop.conninfo, autocommit=True) as listening,
        psycopg.connect(shop.conninfo, autocommit=True) as writing,
    ):
        listening.execute("LISTEN airflow_dblink_event")
        with writing.transaction(force_rollback=True):
            writing.execute("INSERT INTO item VALUES (1)")
        with writing.transaction():
            writing.execute("INSERT INTO item SELECT generate_series(10, 30)")
            writing.execute("DELETE FROM item")
        writing.execute("SELECT airflow_dblink_events.emit('quiet', wake => false)")
        writing.execute("SELECT airflow_dblink_events.emit('last')")
        told = [note.payload for note in listening.notifies(stop_after=2, timeout=60)]

    assert told == ["items", "last"]
    assert len(_captured(shop)) == 42


def test_a_topic_has_its_limits(shop: Database) -> None:
    for topic in ("", "x" * 201, None):
        with pytest.raises(psycopg.IntegrityError):
            shop.rows("SELECT airflow_dblink_events.emit(%s)", topic)


@pytest.mark.parametrize("name", ["row_to_json", "to_jsonb", "count", "id"])
def test_a_key_column_that_is_gone_is_named_and_no_function_of_its_name_is_called(
    shop: Database, name: str
) -> None:
    shop.execute(f"CREATE TABLE item ({name} int, secret text)")
    shop.execute(f"SELECT airflow_dblink_events.attach('item', 'items', ARRAY['{name}'])")
    shop.execute(f"ALTER TABLE item RENAME {name} TO another")

    with pytest.raises(psycopg.errors.UndefinedColumn, match=f"has no column {name} any more") as raised:
        shop.execute("INSERT INTO item VALUES (1, 'hidden')")
    assert "attach" in (raised.value.diag.message_hint or "")
    shop.execute("SELECT airflow_dblink_events.attach('item', 'items', ARRAY['another'])")
    shop.execute("INSERT INTO item VALUES (1, 'hidden')")

    assert _captured(shop) == [("INSERT", {"another": "1"})]


def test_an_update_of_equal_keys_is_an_event_for_each_key(shop: Database) -> None:
    shop.execute("CREATE TABLE item (a int, b text)")
    shop.execute("INSERT INTO item SELECT n % 3, 'x' FROM generate_series(1, 1000) AS n")
    shop.execute("INSERT INTO item VALUES (NULL, 'x'), (NULL, 'x')")
    shop.execute("SELECT airflow_dblink_events.attach('item', 'items', ARRAY['a'])")
    shop.execute("UPDATE item SET b = 'y'")

    assert sorted(_captured(shop), key=str) == [
        ("UPDATE", {"a": "0"}),
        ("UPDATE", {"a": "1"}),
        ("UPDATE", {"a": "2"}),
        ("UPDATE", {"a": None}),
    ]


def test_a_key_is_the_same_in_every_time_zone(shop: Database) -> None:
    shop.execute("CREATE TABLE item (at timestamptz PRIMARY KEY)")
    shop.execute(_ATTACH)
    for zone in ("UTC", "Asia/Tokyo"):
        with psycopg.connect(shop.conninfo, options=f"-c timezone={zone}", autocommit=True) as connection:
            connection.execute("INSERT INTO item VALUES ('2026-01-01 00:00Z'); DELETE FROM item")

    assert {str(key) for _, key in _captured(shop)} == {"{'at': '2026-01-01 00:00:00+00'}"}


@pytest.mark.parametrize(
    ("definition", "call", "error"),
    [
        ("id int PRIMARY KEY", "'airflow_dblink_events.event', 't'", "would never end"),
        (
            "id int",
            "'item', 't', (SELECT array_agg('id'::text) FROM generate_series(1, 33))",
            "at most 32 columns",
        ),
        ("id int", "'item', 't', ARRAY[NULL]::text[]", "has no column NULL"),
        ("id int", "'item', 't', ARRAY['ctid']", "has no column ctid"),
    ],
)
def test_what_no_key_can_be_is_refused(shop: Database, definition: str, call: str, error: str) -> None:
    shop.execute(f"CREATE TABLE item ({definition})")

    with pytest.raises(psycopg.Error, match=error):
        shop.execute(f"SELECT airflow_dblink_events.attach({call})")


def test_without_a_word_on_waking_it_wakes(shop: Database) -> None:
    shop.execute(_ITEMS)
    shop.execute("SELECT airflow_dblink_events.attach('item', 'items', wake => NULL)")
    shop.execute("INSERT INTO item VALUES (1)")

    assert _captured(shop) == [("INSERT", {"id": "1"})]
