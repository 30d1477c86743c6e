"""What a try leaves for the next: several keys, and what earlier versions have stored under them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_dblink.core.once.tickets import read
from airflow_dblink.core.once.tries import Tries
from tests.stores import MemoryStore, StaleTryError

TASK = {"dag_id": "dag", "task_id": "task", "run_id": "run", "map_index": -1}
TICKET = {
    "xid": "757",
    "pid": 4711,
    "backend_start": "1764500000.123456",
    "system_identifier": "7578",
    "database": "16384",
    "timeline": "00000001",
    "crash_epoch": "1764490000.1",
}
JOB_ID = "0b4f3c1e-6f0c-4d0c-9a55-0c8e1c0f7d11"
#: As the version before this module stored them.
STORED: dict[str, dict[str, Any]] = {
    "airflow_dblink_once": {
        "task": TASK,
        "life": 2,
        "ticket": TICKET,
        "result": {"tags": ["INSERT 0 1"]},
        "ended": "returned",
    },
    "airflow_dblink_job": {
        "job_id": JOB_ID,
        "server": {"system_identifier": "7578", "database": "16384"},
        "sent": True,
        "life": 2,
        "ended": True,
    },
    "airflow_dblink_job_result": {"job_id": JOB_ID, "life": 2, "result": {"rows": 3}},
}


@pytest.fixture
def stored(store: MemoryStore) -> MemoryStore:
    for key, value in STORED.items():
        store.set(key, value)
    return store


@pytest.mark.parametrize("key", STORED)
def test_what_an_earlier_version_has_stored_is_read(stored: MemoryStore, key: str) -> None:
    left = Tries(stored, 2).left(key)

    assert left is not None
    assert left.facts == STORED[key]
    assert bool(left.ended) is ("ended" in STORED[key])
    assert not left.is_cleared
    assert Tries(stored, 3).left(key) == type(left)(left.facts, left.ended, is_cleared=True)
    assert Tries(stored, 1).left(key) == left, "fewer retries in the Dag are no clearing"


@pytest.mark.parametrize("key", STORED)
def test_an_earlier_version_can_read_what_is_stored_now(stored: MemoryStore, key: str) -> None:
    tries, value = Tries(stored, 2), STORED[key]
    facts = {name: fact for name, fact in value.items() if name not in ("life", "ended")}

    tries.leave(key, facts, ended=value.get("ended"))

    assert stored.get(key) == value


def test_a_ticket_of_an_earlier_version_is_read(stored: MemoryStore) -> None:
    left = Tries(stored, 2).left("airflow_dblink_once")
    assert left is not None

    ticket = read(left)

    assert (ticket.task, ticket.ticket, ticket.ended) == (TASK, TICKET, "returned")
    assert ticket.result == {"tags": ["INSERT 0 1"]}


def test_keys_are_apart_and_nothing_left_is_nothing(store: MemoryStore) -> None:
    tries = Tries(store)
    tries.leave("one", {"fact": 1})

    assert tries.left("other") is None
    assert store.get("one") == {"fact": 1, "life": 0}


def test_to_leave_anew_is_of_this_life_and_has_not_ended(stored: MemoryStore) -> None:
    left = Tries(stored, 3).left("airflow_dblink_job")
    assert left is not None

    Tries(stored, 3).leave("airflow_dblink_job", left.facts)

    now = stored.get("airflow_dblink_job")
    assert now["life"] == 3
    assert "ended" not in now


def test_to_amend_leaves_life_and_end_as_they_are(stored: MemoryStore) -> None:
    tries = Tries(stored, 3)
    left = tries.left("airflow_dblink_job")
    assert left is not None

    amended = tries.amend("airflow_dblink_job", left, sent=False)

    assert stored.get("airflow_dblink_job") == {**STORED["airflow_dblink_job"], "sent": False}
    assert amended == tries.left("airflow_dblink_job")


@pytest.mark.parametrize("value", ["text", 1, [], {"life": "x", "ended": []}])
def test_what_is_no_state_is_left_by_the_first_life(store: MemoryStore, value: Any) -> None:
    store.set("key", value)
    left = Tries(store, 1).left("key")

    assert left is not None
    assert left.is_cleared
    assert left.ended is None


def test_a_superseded_try_leaves_nothing() -> None:
    store = MemoryStore(refuse_at=1)
    with pytest.raises(StaleTryError):
        Tries(store).leave("key", {})
    assert store.history == []
