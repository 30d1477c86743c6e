"""Each job runs once, however many tries, senders and calls it takes, and whenever they die."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from airflow_dblink.core.errors import TransientError
from airflow_dblink.core.jobs.draft import Draft, draft
from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.send import KEY, Sent
from airflow_dblink.core.server.connection import LinkConnection
from tests.databases import Database
from tests.integration.jobs.client import (
    EFFECT,
    SLOW_EFFECT,
    Client,
    effects,
    end_with_fin,
    end_with_rst,
    gated,
    held,
    start,
    until,
)
from tests.stores import MemoryStore, StaleTryError


def _run_out(client: Client, store: MemoryStore, sql: str = EFFECT) -> Job:
    """Try until the job has succeeded, as a task with retries does."""
    for _ in range(3):
        job = client.run(sql, store=store)
        if job.state == "succeeded":
            return job
    raise AssertionError(f"three tries, and then {job.state}")


# -- at the same moment


def _at_once(*acts: Callable[[], Any]) -> list[Any]:
    """Run all functions in threads, and return their results."""
    results: list[Any] = []
    threads = [threading.Thread(target=lambda act=act: results.append(act())) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(acts)
    return results


def test_two_tries_that_send_at_the_same_moment_run_it_once(client: Client, source: Database) -> None:
    found = client.jobs.ready()
    for round_ in range(1, 21):
        state = {"job_id": f"{round_:032x}", "server": dict(found.server), "sent": False, "life": 0}
        barrier = threading.Barrier(2, timeout=20)

        def send(state: Mapping[str, Any] = state, barrier: threading.Barrier = barrier) -> Sent:
            store = MemoryStore()
            store.set(KEY, state)

            def make(connection: LinkConnection) -> Draft:
                barrier.wait()
                return draft(connection, "source", EFFECT)

            sent = client.submission(store).submit(make)
            if sent.call is not None:
                sent.call.leave()
            return sent

        first, second = _at_once(send, send)
        assert first.job_id == second.job_id
        assert client.wait(first.job_id).state == "succeeded"
        assert effects(source) == round_


def test_two_calls_at_the_same_moment_run_it_once(client: Client, source: Database) -> None:
    for round_ in range(1, 21):
        job_id = client.insert(EFFECT)
        barrier = threading.Barrier(2, timeout=20)

        def call(job_id: Any = job_id, barrier: threading.Barrier = barrier) -> str:
            connection = client.open()
            barrier.wait()
            return connection.execute(client.call_text(job_id).encode()).statusmessage or ""

        assert _at_once(call, call) == ["CALL", "CALL"]
        assert effects(source) == round_


@pytest.mark.parametrize("state", ["running", "succeeded", "failed", "cancelled", "lost"])
def test_a_call_of_a_job_that_is_not_waiting_for_one_does_nothing(
    client: Client, source: Database, state: str
) -> None:
    job_id = client.insert(EFFECT)
    client.jobs.connection.execute(b"UPDATE airflow_dblink.job SET state = %s", [state])

    assert client.call(job_id) == "CALL"

    assert client.column(job_id, "state") == state
    assert effects(source) == 0


def test_a_call_of_no_job_does_nothing(client: Client, source: Database) -> None:
    client.insert(EFFECT)

    assert client.call(uuid4()) == "CALL"

    assert effects(source) == 0


# -- moments of death


def test_a_sender_that_cannot_store_the_id_sends_nothing(client: Client, source: Database) -> None:
    with pytest.raises(StaleTryError):
        client.submit(EFFECT, store=MemoryStore(refuse_at=1))

    assert client.jobs.newest() == []
    assert effects(source) == 0


def test_a_superseded_try_does_not_send_a_failed_job_anew(client: Client, source: Database) -> None:
    store = MemoryStore(refuse_at=3)
    failed = client.send("SELECT 1/0", store=store)
    client.wait(failed)

    with pytest.raises(StaleTryError):
        client.submit(EFFECT, store=store)

    assert [job.id for job in client.jobs.newest()] == [failed]
    assert effects(source) == 0


class DyingStore(MemoryStore):
    """The process dies right after a write to the store, which keeps the value."""

    def set(self, key: str, value: Any) -> None:
        super().set(key, value)
        raise SystemExit


def test_death_after_the_id_was_stored(client: Client, source: Database) -> None:
    dead = DyingStore()
    with pytest.raises(SystemExit):
        client.submit(EFFECT, store=dead)
    assert client.jobs.newest() == []

    store = MemoryStore()
    store.set(KEY, dead.get(KEY))
    job = _run_out(client, store)

    assert str(job.id) == dead.get(KEY)["job_id"]
    assert effects(source) == 1


def test_a_try_that_is_superseded_after_its_call_leaves_the_job_to_the_next(
    client: Client, source: Database
) -> None:
    store = MemoryStore(refuse_at=2)
    with pytest.raises(StaleTryError):
        client.submit(EFFECT, store=store)
    assert all(connection.closed for connection in client.opened)

    store.refuse_at = None
    _run_out(client, store)

    assert len(client.jobs.newest()) == 1
    assert effects(source) == 1


SEND = """
import json, sys
from pathlib import Path
from airflow_dblink.core.server.login import connect
from airflow_dblink.core.server.target import Target
from airflow_dblink.core.jobs.draft import draft
from airflow_dblink.core.jobs.send import Submission

class Store:
    def get(self, key, default=None):
        return default
    def set(self, key, value):
        file = Path(sys.argv[2])
        file.with_suffix(".new").write_text(json.dumps(value))
        file.with_suffix(".new").rename(file)

target = Target("source", json.loads(sys.argv[1]))
task = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1, "try_number": 1}
submission = Submission("source", "airflow_dblink", lambda: connect(target), Store(), task)
print("ready", flush=True)
submission.submit(lambda connection: draft(connection, "source", sys.argv[3])).call.wait(60)
"""


def _killed_sender(source: Database, file: Path, sql: str, when: Callable[[], Any]) -> None:
    command = [sys.executable, "-c", SEND, json.dumps(source.params), str(file), sql]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sender:
        assert sender.stdout is not None
        assert sender.stdout.readline() == "ready\n"
        when()
        sender.kill()


def test_death_between_the_row_and_the_call(client: Client, source: Database, tmp_path: Path) -> None:
    client.jobs.ready()
    source.admin(
        """
        CREATE FUNCTION public.dawdle() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_catalog.pg_advisory_xact_lock_shared(1); RETURN NULL; END';
        CREATE TRIGGER dawdle AFTER INSERT ON airflow_dblink.job EXECUTE FUNCTION public.dawdle()
        """
    )
    with held(source):
        _killed_sender(source, tmp_path / "state", EFFECT, lambda: until(lambda: gated(source)))
    (job,) = until(client.jobs.newest)
    assert job.state == "sent"

    store = MemoryStore()
    store.set(KEY, json.loads((tmp_path / "state").read_text()))
    assert _run_out(client, store).id == job.id
    assert effects(source) == 1


@pytest.mark.parametrize("delay_ms", [1, 4, 8, 12, 16, 24, 40])
def test_a_sender_killed_at_any_moment(
    client: Client, source: Database, tmp_path: Path, delay_ms: int
) -> None:
    client.jobs.ready()
    file = tmp_path / "state"
    _killed_sender(source, file, SLOW_EFFECT, lambda: threading.Event().wait(delay_ms / 1000))

    store = MemoryStore()
    if file.exists():
        store.set(KEY, json.loads(file.read_text()))
    _run_out(client, store, SLOW_EFFECT)

    source.wait_until_left(1.0)
    assert effects(source) == 1


@pytest.mark.parametrize("sql", [EFFECT, SLOW_EFFECT], ids=["short", "slow"])
@pytest.mark.parametrize("die", [end_with_fin, end_with_rst], ids=["FIN", "RST"])
def test_death_right_after_the_call_was_sent(
    client: Client, source: Database, sql: str, die: Callable[[LinkConnection], None]
) -> None:
    for round_ in range(1, 4):
        job_id = client.insert(sql)
        store = MemoryStore()
        server = dict(client.jobs.installation().server)
        store.set(KEY, {"job_id": str(job_id), "server": server, "sent": False, "life": 0})
        connection = client.open()
        start(connection, client.call_text(job_id))
        die(connection)

        _run_out(client, store, sql)

        client.jobs.connection.execute(b"SELECT pg_sleep(0.1)")
        assert effects(source) == round_


def test_death_after_the_commit(client: Client, source: Database) -> None:
    store = MemoryStore(refuse_at=2)
    with pytest.raises(StaleTryError):
        client.submit(EFFECT, store=store)
    until(lambda: client.jobs.newest(states=["succeeded"]))
    assert store.get(KEY)["sent"] is False

    store.refuse_at = None
    sent = client.submit(EFFECT, store=store)

    assert sent.call is None
    assert sent.job is not None
    assert sent.job.state == "succeeded"
    assert effects(source) == 1


def test_a_lock_on_the_row_is_no_reason_to_run_it_twice(
    client: Client, source: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = client.insert(EFFECT)
    store = MemoryStore()
    server = dict(client.jobs.installation().server)
    store.set(KEY, {"job_id": str(job_id), "server": server, "sent": True, "life": 0})
    holder = client.open()
    holder.execute("BEGIN; SELECT FROM airflow_dblink.job FOR UPDATE")

    with monkeypatch.context() as impatient:
        impatient.setattr("airflow_dblink.core.jobs.call.CLAIM_S", 0.5)
        for _ in range(2):
            with pytest.raises(TransientError, match="did not begin within"):
                client.submit(EFFECT, store=store)
    holder.execute("ROLLBACK")

    assert client.run(EFFECT, store=store).id == job_id
    source.wait_until_left(0.3)
    assert effects(source) == 1
