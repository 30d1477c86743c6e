"""A primary goes and its standby takes over: a job and its effects are there together, or neither is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from threading import Thread
from uuid import UUID

import psycopg
import pytest

from airflow_dblink.core.errors import OutcomeUnknownError, TransientError
from airflow_dblink.core.jobs.job import Job
from airflow_dblink.core.jobs.send import KEY
from airflow_dblink.embedded.server import servers
from tests.databases import Database
from tests.integration.jobs.client import EFFECT, SLEEP, Client, backend, effects, until
from tests.standby import promote, standby_of
from tests.stores import MemoryStore

#: A job that waits for a lock of the test, and ends when the test releases it.
HELD = f"SELECT pg_advisory_xact_lock(1); {EFFECT}"


@pytest.fixture(scope="module")
def primary() -> Iterator[Database]:
    with servers("primary") as (server,):
        database = Database("primary", server, server.dbname)
        database.execute("CREATE TABLE effect (a int)")
        with closing(Client(database.target)) as client:
            client.jobs.ready()
        yield database


@dataclass(frozen=True)
class Failover:
    """A primary and its standby, each with who sends jobs there."""

    primary: Database
    standby: Database
    before: Client
    after: Client

    def until_replayed(self, job_id: UUID, state: str) -> None:
        """Wait until the standby has the job's row in that state."""
        query = "SELECT state FROM airflow_dblink.job WHERE id = %s"
        until(lambda: self.standby.admin(query, job_id) == [(state,)])

    def cut_off(self) -> None:
        """Stop the replication: the standby receives no later changes."""
        self.standby.server.stop()

    def happen(self) -> None:
        """Crash the primary and promote the standby."""
        self.primary.server.crash()
        self.standby.server.start()
        promote(self.standby.server)

    def state_there(self, job_id: UUID) -> list[tuple[str]]:
        """Return the row's state as it is on the standby, without anybody looking for its session."""
        return self.standby.admin("SELECT state FROM airflow_dblink.job WHERE id = %s", job_id)


@pytest.fixture
def failover(primary: Database) -> Iterator[Failover]:
    primary.execute("TRUNCATE effect")
    with standby_of(primary.server) as server:
        standby = Database("standby", server, primary.name)
        with closing(Client(primary.target)) as before, closing(Client(standby.target)) as after:
            yield Failover(primary, standby, before, after)
    primary.server.start()


def test_a_job_whose_end_the_standby_did_not_get_is_lost_and_a_retry_does_it(failover: Failover) -> None:
    store = MemoryStore()
    with psycopg.connect(failover.primary.conninfo) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(1)")
        job_id = failover.before.send(HELD, store=store)
        failover.until_replayed(job_id, "running")
        failover.cut_off()
    assert failover.before.wait(job_id).state == "succeeded"
    assert effects(failover.primary) == 1

    failover.happen()

    assert failover.state_there(job_id) == [("running",)]
    assert failover.after.jobs.get(job_id).state == "lost"
    assert effects(failover.standby) == 0
    again = failover.after.run(EFFECT, store=store)
    assert (again.state, again.replaces) == ("succeeded", job_id)
    assert effects(failover.standby) == 1


def test_a_job_whose_beginning_the_standby_did_not_get_is_called_there(failover: Failover) -> None:
    store = MemoryStore()
    job_id = failover.before.insert(EFFECT)
    server = failover.before.jobs.ready().server
    store.set(KEY, {"job_id": str(job_id), "server": server, "sent": True, "life": 0})
    failover.until_replayed(job_id, "sent")
    failover.cut_off()
    failover.before.call(job_id)
    assert failover.before.wait(job_id).state == "succeeded"

    failover.happen()

    again = failover.after.run(EFFECT, store=store)
    assert (again.id, again.state) == (job_id, "succeeded")
    assert effects(failover.standby) == 1


def test_a_job_of_which_the_standby_got_nothing_may_have_run(failover: Failover) -> None:
    store = MemoryStore()
    failover.cut_off()
    job_id = failover.before.send(EFFECT, store=store)
    assert failover.before.wait(job_id).state == "succeeded"

    failover.happen()

    with pytest.raises(OutcomeUnknownError, match="may have run, but the server no longer knows it"):
        failover.after.submit(EFFECT, store=store)
    assert failover.state_there(job_id) == []
    assert effects(failover.standby) == 0


def test_a_job_of_which_the_standby_got_all_is_taken(failover: Failover) -> None:
    store = MemoryStore()
    job_id = failover.before.run(EFFECT, store=store).id
    failover.until_replayed(job_id, "succeeded")

    failover.happen()

    again = failover.after.submit(EFFECT, store=store)
    assert again.job is not None
    assert (again.job_id, again.job.state, again.call) == (job_id, "succeeded", None)
    assert effects(failover.standby) == 1


def test_a_standby_takes_no_jobs(failover: Failover) -> None:
    store = MemoryStore()

    with pytest.raises(TransientError, match="this server is a standby: jobs need a primary"):
        failover.after.submit(EFFECT, store=store)
    assert store.history == []

    failover.until_replayed(failover.before.send(EFFECT, store=store), "succeeded")
    with pytest.raises(TransientError, match="this server is a standby: jobs need a primary"):
        failover.after.submit(EFFECT, store=store)


@pytest.mark.parametrize("with_both_addresses", [True, False])
def test_a_job_is_waited_for_until_the_standby_is_promoted(
    failover: Failover, with_both_addresses: bool
) -> None:
    """With both addresses in the connection, as libpq has it for that, or that of the standby alone."""
    job_id = failover.before.send(SLEEP)
    failover.until_replayed(job_id, "running")
    both = [failover.primary.params, failover.standby.params]
    wherever = {
        **{name: ",".join(params[name] for params in both) for name in ("host", "port")},
        "target_session_attrs": "read-write",
    }
    target = failover.standby.target
    if with_both_addresses:
        target = replace(target, params={**failover.standby.params, **wherever})
    ended: list[Job] = []
    with closing(Client(target)) as client:
        # A look while the primary dies may find that the job's session has ended first, and end the wait. So
        # the crash comes when the first look is over, and no poll follows.
        poll_s = 60.0 if with_both_addresses else 0.2
        waiting = Thread(target=lambda: ended.append(client.wait(job_id, poll_s=poll_s)), daemon=True)
        waiting.start()
        until(lambda: client.opened)
        if with_both_addresses:
            pid = client.opened[0].info.backend_pid
            until(lambda: [s for s, query in backend(failover.primary, pid) if "look" in query] == ["idle"])
        failover.primary.server.crash()
        time.sleep(1)
        assert waiting.is_alive(), ended
        promote(failover.standby.server)
        waiting.join(130)

    assert [job.state for job in ended] == ["lost"]
