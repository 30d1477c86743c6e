"""What the processes share in which :mod:`benchmarks.child` has things done: meter, context, answers."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import psycopg

from airflow_dblink.hooks.dblink import DblinkHook
from benchmarks.proxy import Proxy

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Airflow connection that leads through the proxy.
PROXIED = "bench_proxy"
_MB = 1e6


class Store(dict[str, Any]):
    """Stands in for Airflow's ``task_state_store``, which is a call to the API server."""

    def set(self, key: str, value: Any) -> None:
        """Keep *value* as JSON would."""
        self[key] = json.loads(json.dumps(value))


def context_of_task() -> Context:
    """Return what an operator's ``execute`` needs of a task's context."""
    ti = SimpleNamespace(
        dag_id="bench",
        task_id="bench",
        run_id="bench",
        map_index=-1,
        try_number=1,
        max_tries=0,
        xcom_push=lambda key, value: None,
    )
    return cast("Context", {"ti": ti, "task_state_store": Store()})


class Meter:
    """Measures what is called: wall time, CPU of this process, memory above the import baseline."""

    def __init__(self) -> None:
        gc.collect()
        self._baseline_mb = _rss_mb("VmRSS")

    def __call__(self, work: Callable[[], Any]) -> dict[str, Any]:
        """Return the sample, and what *work* returned."""
        gc.collect()
        # The peak starts anew; where it can't, it is the highest since the start, which is never less.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        cpu, started = time.process_time(), time.perf_counter()
        returned = work()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        sample = {"seconds": seconds, "cpu_s": cpu_s, "rss_mb": _rss_mb("VmHWM") - self._baseline_mb}
        return {"sample": sample, "returned": returned}


def _rss_mb(field: str) -> float:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MB if sys.platform == "darwin" else peak * 1024 / _MB
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(field)) * 1024 / _MB


def connect(conn_id: str) -> psycopg.Connection[tuple[Any, ...]]:
    """Connect with psycopg alone."""
    return psycopg.connect(os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"])


@contextlib.contextmanager
def proxied(conn_id: str, **extra: str) -> Iterator[tuple[Proxy, str]]:
    """Run a proxy before the server of *conn_id*; the Airflow connection is then ``PROXIED``.

    :param extra: fields of that connection's Extra, beyond what libpq knows.
    :returns: the proxy, and a URI for libpq.
    """
    target = DblinkHook(dblink_conn_id=conn_id).target().params
    with Proxy(str(target["host"]), int(target["port"])) as proxy:
        uri = os.environ[f"AIRFLOW_CONN_{conn_id.upper()}"]
        uri = uri.replace(f":{target['port']}/", f":{proxy.port}/") + "?sslmode=disable&gssencmode=disable"
        own = "".join(f"&{name}={value}" for name, value in extra.items())
        with_own = uri.replace("postgres:", "dblink:", 1) + own  # only that type has fields of ours
        os.environ[f"AIRFLOW_CONN_{PROXIED.upper()}"] = with_own if own else uri
        yield proxy, uri


def serve(*jobs: Callable[..., dict[str, Any]]) -> None:
    """Do the jobs that stdin asks for, until it ends; answers go out on the pipe that is the argument."""
    named = {job.__name__: job for job in jobs}
    measured = Meter()
    with os.fdopen(int(sys.argv[1]), "w") as answers:
        print("{}", file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = named[request["job"]](measured, **request["arguments"])
            except Exception as error:  # noqa: BLE001 - the parent reports it, with the log
                traceback.print_exc()
                answer = {"error": f"{request['job']}: {type(error).__name__}: {error}"}
            print(json.dumps(answer, default=str), file=answers, flush=True)
