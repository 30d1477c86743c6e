"""Memory of queries and results, measured in processes of their own."""

from __future__ import annotations

import json

import pytest

from tests.databases import Database
from tests.own_process import MB, last_line

RUN = """
import json, sys
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.link.registry import Links
from tests.own_process import peak

with Links() as links:
    links.connect("x", Target("source", dict(json.loads(sys.argv[1]))))
    link = links.get("x")
    link.query("SELECT 1")
    link.pending.send("SELECT 1")
    link.pending.result(), link.pending.result()
    before = peak()
    got = eval(sys.argv[2])
    print(json.dumps({"got": got, "grown": peak() - before}))
"""


def _measured(source: Database, expression: str) -> dict[str, int]:
    measured: dict[str, int] = json.loads(last_line(RUN, json.dumps(source.params), expression))
    return measured


def test_a_million_narrow_rows_stream_in_flat_memory(source: Database) -> None:
    measured = _measured(
        source,
        "link.pending.send(\"SELECT g, 'narrow' FROM generate_series(1, 1000000) g\")"
        " and sum(len(batch) for batch in link.pending.batches(5000))",
    )
    assert measured["got"] == 1_000_000
    assert measured["grown"] < 16 * MB


def test_an_abandoned_stream_is_read_past_in_flat_memory(source: Database) -> None:
    measured = _measured(
        source,
        "link.pending.send(\"SELECT repeat('x', 1000) FROM generate_series(1, 200000); SELECT 7\")"
        " and len(next(link.pending.batches(10))) and link.pending.result()[0][0]",
    )
    assert measured["got"] == 7
    assert measured["grown"] < 16 * MB


def test_fail_on_error_false_takes_no_more_memory_than_true(source: Database) -> None:
    query = "len(link.query(\"SELECT g, 'narrow' FROM generate_series(1, 100000) g\", fail_on_error={}))"
    kept, plain = (_measured(source, query.format(fail)) for fail in (False, True))
    assert kept["got"] == plain["got"] == 100_000
    assert kept["grown"] < 2 * plain["grown"] + 16 * MB, (kept, plain)


@pytest.mark.parametrize(
    "quoted", ["\"'\" + 'x' * {0} + \"'\"", "\"E'\" + 'x' * {0} + \"'\"", '"$$" + \'x\' * {0} + "$$"']
)
def test_a_large_literal_is_sent_in_memory_of_its_size(source: Database, quoted: str) -> None:
    size = 5 * MB
    measured = _measured(
        source,
        f"link.pending.send('SELECT length(' + {quoted.format(size)} + ')') and link.pending.result()[0][0]",
    )
    assert measured["got"] == size
    assert measured["grown"] < 20 * size
