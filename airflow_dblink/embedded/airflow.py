"""A real Airflow of our own: api-server, scheduler and dag-processor in a temporary home on SQLite.

All its processes are descendants of one keeper (``keeper.py``). It ends them and removes the home when
:meth:`Airflow.stop` is called or the caller is gone, in whatever way it died.

The processes of a task, in Airflow 3.3 with LocalExecutor: the scheduler forks ``parallelism`` worker
processes. A worker that gets a task becomes its *supervisor* (heartbeats, log, API calls) and forks the *task
process*, which leads a process group of its own and runs the operator; its pid is the ``pid`` of the task
instance. The supervisor notices at once if the task process is killed, but never if it is stopped (SIGSTOP):
the heartbeats go on. Only a dead or stopped supervisor runs into
``[scheduler] task_instance_heartbeat_timeout``, and then the task process outlives the failure.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil
import psycopg
from psycopg import sql

from airflow_dblink.embedded.api import START_TIMEOUT_S, AirflowApi
from airflow_dblink.embedded.ports import free_port
from airflow_dblink.embedded.settings import SETTINGS


class Airflow(AirflowApi):
    """One Airflow installation in a temporary home, running for real on 127.0.0.1.

    :param dags_folder: directory of the Dags; they can import this package.
    :param connections: Airflow connection URI or JSON by connection id. They exist only in the
        environment of the processes, never on disk.
    :param env: more environment variables, ``AIRFLOW__SECTION__KEY`` for settings; they override ours.
    :param triggerers: number of triggerers; without one deferred tasks wait for ever. Two need *database*.
    :param database: SQLAlchemy URL of an empty PostgreSQL database for Airflow itself, instead of SQLite.
    :param parallelism: tasks that can run at once, each in a forked worker.
    :param ui: ask for a login (:attr:`username`, :attr:`password`) instead of letting everyone in.
    """

    username = "admin"

    def __init__(
        self,
        dags_folder: Path,
        connections: Mapping[str, str],
        *,
        env: Mapping[str, str] | None = None,
        triggerers: int = 0,
        database: str | None = None,
        parallelism: int = 8,
        ui: bool = False,
    ) -> None:
        super().__init__()
        self.dags_folder, self.connections, self.env = dags_folder, connections, env or {}
        self.triggerers, self.database, self.parallelism = triggerers, database, parallelism
        self.password = secrets.token_urlsafe(12) if ui else None
        # The name is fixed first, so that files can be removed whenever an interrupt comes.
        self.home = Path(tempfile.gettempdir(), f"airflow-dblink-{secrets.token_hex(8)}")
        self._environ: dict[str, str] = {}
        self._keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Make the home and the database, start all components and wait until they are healthy.

        :raises RuntimeError: if a component ends; the message has the tail of its log.
        :raises TimeoutError: if tasks aren't answered within :data:`START_TIMEOUT_S` seconds, or the
            components aren't healthy as many seconds after that.
        """
        try:
            self._launch()
            self._until("Airflow answers tasks", self._answers_tasks, START_TIMEOUT_S)
            self._until("Airflow is healthy", self._healthy, START_TIMEOUT_S)
            self._http.headers["Authorization"] = f"Bearer {self._token()}"
        except BaseException:
            self.stop()
            raise

    def _launch(self) -> None:
        self.home.mkdir(0o700)
        if self.password:  # Airflow would make one itself, and write it to the api-server's log
            file = self.home / "simple_auth_manager_passwords.json.generated"
            file.touch(mode=0o600)
            file.write_text(json.dumps({self.username: self.password}))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._environ = self._environment(port)
        # No proxy for loopback. The limit is above SQLite's 30 s, so that the server can answer by itself.
        self._http = httpx.Client(base_url=self.url, trust_env=False, timeout=90)
        components = ["api-server", "scheduler", "dag-processor", *self._triggerer_names()]
        (self.home / "airflow.cfg").touch(mode=0o600)  # or every process would write one with random keys
        keeper = Path(__file__).with_name("keeper.py")
        self._keeper = subprocess.Popen(
            # -P: this directory on sys.path would hide the real airflow
            [sys.executable, "-P", keeper, str(os.getpid()), self.home, *components],
            env=self._environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """End every process, running tasks included, and remove the home. Harmless if already stopped."""
        self._http.close()
        if self._keeper is not None:
            self._keeper.terminate()
            self._keeper.wait()
            self._keeper = None
        shutil.rmtree(self.home, ignore_errors=True)  # in case the keeper had not really begun

    def all_logs(self) -> str:
        """Return everything under the home, and the database, as one text to search in."""
        files = sorted(path for path in self.home.rglob("*") if path.is_file())
        texts = [path.read_bytes().decode(errors="replace") for path in files]
        if self.database is not None:
            texts += _tables(self.database)
        return "\n".join(texts)

    def cli(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``airflow`` with *args* in the same environment.

        :raises subprocess.CalledProcessError: if it fails and *check* is true.
        """
        command = [sys.executable, "-m", "airflow", *args]
        return subprocess.run(command, env=self._environ, capture_output=True, text=True, check=check)

    def task_pid(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int:
        """Return the pid of the process that runs the operator, waiting up to 90 s for it.

        :raises TimeoutError: if the task isn't running by then.
        """
        running = self.wait_for_task(dag_id, run_id, task_id, {"running"}, timeout_s=90, map_index=map_index)
        return int(running["pid"])

    def supervisor_pid(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int:
        """Return the pid of the LocalExecutor worker that watches over the task process.

        :raises TimeoutError: if the task isn't running within 90 s.
        :raises psutil.NoSuchProcess: if the task process has just ended.
        """
        return psutil.Process(self.task_pid(dag_id, run_id, task_id, map_index)).ppid()

    def kill_component(self, name: str, signum: signal.Signals = signal.SIGKILL) -> None:
        """End a component and wait until it is gone; it stays down until :meth:`start_component`.

        SIGKILL goes to all processes of a triggerer or api-server, but only to the scheduler itself: its
        workers are other machines in a larger installation. Here they have inherited its connections to the
        database, and would keep its sessions, with their locks, for a next scheduler to wait for; so these
        sessions are ended.

        :param name: ``scheduler``, ``dag-processor``, ``api-server``; ``triggerer.1`` and so on.
        :raises TimeoutError: if it isn't gone within 30 s.
        """
        family = self.component_processes(name)
        ports = _ports_of(family[0])
        if signum != signal.SIGKILL or name == "scheduler":
            family = family[:1]
        (self.home / "components" / f"{name}.down").touch()
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signum)
        _, alive = psutil.wait_procs(family, timeout=30)
        if alive:
            raise TimeoutError(f"{name} is still there after {signum.name}")
        if self.database is not None:
            _end_sessions(self.database, ports)

    def component_processes(self, name: str) -> list[psutil.Process]:
        """Return a component's process, and those that it has started.

        :raises psutil.NoSuchProcess: if it isn't running.
        """
        process = psutil.Process(int((self.home / "components" / f"{name}.pid").read_text()))
        return [process, *process.children(recursive=True)]

    def start_component(self, name: str) -> None:
        """Start a component that :meth:`kill_component` has ended; don't wait until it is healthy."""
        pid = (self.home / "components" / f"{name}.pid").read_text()
        (self.home / "components" / f"{name}.down").unlink()

        def started() -> bool | None:
            return (self.home / "components" / f"{name}.pid").read_text() not in ("", pid) or None

        self._until(f"{name} is started", started, 60)

    def _triggerer_names(self) -> list[str]:
        return [f"triggerer.{n}" for n in range(1, self.triggerers + 1)]

    def _check_components(self) -> None:
        if self._keeper is None or self._keeper.poll() is not None:
            raise RuntimeError("Airflow is not running")
        ended = self.home / "ended"
        if ended.exists():
            name = ended.read_text()
            tail = (self.home / "components" / f"{name}.log").read_text(errors="replace")[-4_000:]
            raise RuntimeError(f"Airflow's {name} has ended; the end of its log:\n{tail}")

    def _answers_tasks(self) -> bool | None:
        # At the first call for tasks the api-server builds that part of its app, and answers nobody while it
        # does. This takes seconds, on a busy machine minutes, and would fail the first task. Any answer shows
        # that it is over; if base_url has a path, the answer is a 404.
        with suppress(httpx.TransportError):
            self._http.get("/execution/health")
            return True
        return None

    def _healthy(self) -> bool | None:
        with suppress(httpx.TransportError, httpx.HTTPStatusError):
            health = self.api("GET", "/monitor/health")
            parts = ["metadatabase", "scheduler", "dag_processor", *["triggerer"] * bool(self.triggerers)]
            return all(health[part]["status"] == "healthy" for part in parts) or None
        return None

    def _token(self) -> str:
        if self.password is None:
            answer = self._http.get("/auth/token")
        else:
            login = {"username": self.username, "password": self.password}
            answer = self._http.post("/auth/token", json=login)
        return str(answer.raise_for_status().json()["access_token"])

    def _environment(self, port: int) -> dict[str, str]:
        """Return the environment of all processes: the caller's, without its Airflow settings, and ours."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW_")}
        connections = {f"AIRFLOW_CONN_{conn_id.upper()}": uri for conn_id, uri in self.connections.items()}
        package_root = str(Path(__file__).parents[2])
        settings = {
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags_folder.absolute()),
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(self.password is None),
            "AIRFLOW__CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__SECRET_KEY": secrets.token_hex(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(64),
            # A writer waits this long for another one before "database is locked"; the default is 5 s.
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.database
            or f"sqlite:///{self.home}/airflow.db?timeout=30",
            "PYTHONPATH": os.pathsep.join(filter(None, [package_root, mine.get("PYTHONPATH")])),
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return mine | SETTINGS | settings | connections | dict(self.env)


def _ports_of(process: psutil.Process) -> list[int]:
    """Return the local ports of a process's TCP connections."""
    return [connection.laddr.port for connection in process.net_connections("tcp") if connection.raddr]


def _end_sessions(database: str, ports: list[int]) -> None:
    """End the sessions that clients at *ports* of this machine had in a PostgreSQL database."""
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE client_port = ANY(%s) AND datname = current_database() AND usename = current_user"
    )
    with _connect(database) as connection:
        connection.execute(end, [ports])


def _tables(database: str) -> Iterator[str]:
    """Give the rows of each table of a PostgreSQL database, as COPY writes them."""
    named = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'"
    with _connect(database) as connection:
        for name in connection.execute(named).fetchall():
            with connection.cursor().copy(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(*name))) as rows:
                yield b"".join(rows).decode(errors="replace")


def _connect(database: str) -> psycopg.Connection:
    """Connect to the PostgreSQL database of an SQLAlchemy URL."""
    return psycopg.connect(database.replace("postgresql+psycopg2:", "postgresql:", 1))
