"""From parameters to a libpq connection string, in one place for every path that connects."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from airflow_dblink.core.errors import UsageError

PoolingMode = Literal["none", "session", "transaction"]

#: Extra fields of an Airflow connection that are ours and never reach libpq.
OWN_OPTIONS = frozenset(
    {
        *("password_required", "direct_host", "direct_port", "pooling_mode", "session_settings"),
        *("job_schema", "trusted_owners"),
    }
)

#: Arguments of psycopg's own ``connect``, which aren't libpq's.
PSYCOPG_ARGUMENTS = frozenset({"autocommit", "prepare_threshold", "row_factory", "cursor_factory", "context"})
#: Parameters of libpq that are as secret as the password.
SECRETS = ("sslpassword", "oauth_client_secret")

# NAMEDATALEN - 1: PostgreSQL cuts application_name silently after this many bytes.
_NAME_BYTES = 63
# By default TCP notices a dead network after two hours without data, or 15 minutes without an answer.
_KEEPALIVE = {
    "keepalives_idle": 30,  # seconds, as the next
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds
}
# "scheduled__2026-11-22T06:00:00+00:00" says no more than "2026-11-22T06:00:00".
_RUN_ID = re.compile(r"^[a-z_]+?__(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_QUOTED = re.compile(r'".*"', re.DOTALL)
_PORTS = re.compile(r"[\d,]*")
_SETTING = re.compile(r"^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """Where and how to connect: the contents of an Airflow connection, independent of Airflow.

    :ivar conn_id: name used in errors and logs.
    :ivar params: libpq parameters (host, port, user, password, dbname, sslmode, ...).
    :ivar password_required: dblink's credential rule; see :mod:`airflow_dblink.core.link.registry`.
    :ivar direct_host: address that doesn't lead through the pooler; ``None``: the same host.
    :ivar direct_port: port of that address.
    :ivar pooling_mode: ``none``, or the pool mode of the pooler that *params* lead to.
    :ivar session_settings: run-time parameters for every session.
    :ivar job_schema: schema of the table of remote jobs.
    :ivar psycopg: psycopg's own arguments in the connection: ``autocommit`` (for ``get_conn()``
        only) and ``prepare_threshold``.
    :ivar trusted_owners: roles that may own parts of the job schema although others may act as them (groups);
        see :mod:`airflow_dblink.core.installed.trust`.
    """

    conn_id: str
    params: Mapping[str, Any] = field(repr=False)
    password_required: bool = True
    direct_host: str | None = None
    direct_port: int | None = None
    pooling_mode: PoolingMode = "none"
    session_settings: Mapping[str, str] = field(default_factory=dict)
    job_schema: str = "airflow_dblink"
    psycopg: Mapping[str, Any] = field(default_factory=dict)
    trusted_owners: Sequence[str] = ()

    @property
    def has_direct_address(self) -> bool:
        """Whether the connection has an address around the pooler."""
        return self.direct_host is not None or self.direct_port is not None

    def needs_direct_address(self) -> bool:
        """Whether sessions have to go around the pooler, since it would not keep their settings.

        :raises UsageError: if no such address is known.
        """
        if self.pooling_mode != "transaction" or not self.session_settings:
            return False
        if not self.has_direct_address:
            raise UsageError(
                "session_settings do not survive a pooler in transaction mode",
                self.conn_id,
                hint="set direct_host or direct_port in the connection, or the settings on the operator",
            )
        return True

    def leads_through_pooler(self) -> bool:
        """Whether sessions go through a pooler in transaction mode, and so keep no state.

        :raises UsageError: as :meth:`needs_direct_address`.
        """
        return self.pooling_mode == "transaction" and not self.needs_direct_address()

    def conninfo(
        self, *, application_name: str | None = None, direct: bool = False, keeps_encoding: bool = False
    ) -> str:
        """Return the libpq connection string, for sync and async alike.

        :param application_name: unless the connection names its own.
        :param direct: use the direct address, if there is one; for waiters, also notice within a minute
            or two that the network has gone.
        :param keeps_encoding: keep the connection's ``client_encoding``, if it has one; otherwise use UTF8.
        :raises UsageError: if libpq doesn't know a parameter, or a value has a NUL character.
        """
        params = {k: v for k, v in self.params.items() if v is not None and v != ""}
        if not keeps_encoding or "client_encoding" not in params:
            params["client_encoding"] = "UTF8"  # Python's; dblink forces the local database's likewise
        if application_name:
            params.setdefault("application_name", application_name)
        if direct and self.has_direct_address:
            params["host"] = self.direct_host or params.get("host")
            params["port"] = self.direct_port or params.get("port")
            params.pop("hostaddr", None)
        if direct:
            params = {**_KEEPALIVE, **params}
        # libpq would silently use the part before the NUL.
        with_nul = sorted(k for k, v in params.items() if "\0" in str(v))
        if not with_nul and (text := _joined(params)) is not None:
            return text
        names = sorted(params)
        del params  # a traceback may show it
        if with_nul:
            raise UsageError(f"field {with_nul[0]!r} of the connection holds a NUL character", self.conn_id)
        unknown = ", ".join(name for name in names if not is_libpq_option(name))
        raise UsageError(
            f"connection parameters that libpq does not know: {unknown or 'unreadable'}",
            self.conn_id,
            hint="correct the Extra field of the Airflow connection",
        )

    @property
    def brings_credential(self) -> bool:
        """Whether the connection itself holds a credential (dblink's rule, before connecting)."""
        return bool(self.params.get("password") or self.params.get("sslcert") or self.delegates)

    @property
    def delegates(self) -> bool:
        """Whether the connection asks to delegate GSSAPI credentials to the server."""
        return str(self.params.get("gssdelegation", "")).strip() in ("1", "true")


def _joined(params: Mapping[str, Any]) -> str | None:
    """Return the connection string; ``None`` if libpq refuses it, since its message may hold the password."""
    try:
        return make_conninfo("", **{k: str(v) for k, v in params.items()})
    except Exception:  # noqa: BLE001 - any failure means "refused"
        return None


def is_libpq_option(key: str) -> bool:
    """Whether libpq knows a connection parameter of that name."""
    try:
        make_conninfo("", **{key: "1"})
    except Exception:  # noqa: BLE001 - any failure means "not an option"
        return False
    return True


def target_from_extra(
    conn_id: str,
    params: Mapping[str, Any],
    extra: Mapping[str, Any],
    arguments: Mapping[str, Any] | None = None,
) -> Target:
    """Return the :class:`Target` of libpq *params* and our own options in *extra* and *arguments*.

    :param arguments: the caller's options, which override those of the connection's *extra*.
    :raises UsageError: names the field or argument with a wrong value, and the allowed values.
    """
    arguments = arguments or {}
    given = {**extra, **arguments}

    def option(name: str) -> _Option:
        return _Option(conn_id, name, is_argument=name in arguments)

    pooling = str(given.get("pooling_mode") or "none").strip().lower()
    if pooling not in get_args(PoolingMode):
        raise option("pooling_mode").wrong(pooling, "one of none, session, transaction")
    return Target(
        conn_id=conn_id,
        params=dict(params),
        password_required=_boolean(option("password_required"), given.get("password_required", True)),
        direct_host=str(given["direct_host"]).strip() if given.get("direct_host") else None,
        direct_port=_port(option("direct_port"), given.get("direct_port")),
        pooling_mode=cast("PoolingMode", pooling),
        session_settings=_settings(option("session_settings"), given.get("session_settings")),
        job_schema=_schema_name(option("job_schema"), given.get("job_schema")),
        psycopg=_psycopg_arguments(conn_id, extra),
        trusted_owners=_role_names(option("trusted_owners"), given.get("trusted_owners")),
    )


def is_conninfo(text: str) -> bool:
    """Whether *text* can only be a libpq connection string or URI, and no Airflow connection's id."""
    return "=" in text or "://" in text


def target_from_conninfo(conninfo: str, arguments: Mapping[str, Any]) -> Target:
    """Return the :class:`Target` of a libpq connection string or URI, with our own options in *arguments*.

    :raises UsageError: 08001 if libpq can't read it; and as :func:`target_from_extra`.
    """
    if "\0" in conninfo:
        raise _unreadable("the connection string holds a NUL character")
    try:
        params = conninfo_to_dict(conninfo)
    except psycopg.Error as error:
        reason = str(error).strip()
        # libpq's message may quote a part of the password.
        raise _unreadable(_QUOTED.sub('"..."', reason) if is_conninfo(conninfo) else reason) from None
    host = str(params.get("host") or params.get("hostaddr") or params.get("service") or "local")
    # libpq reads a part of the password as host or port if "@" or "/" in it isn't percent-encoded.
    if "@" in host or not _PORTS.fullmatch(str(params.get("port") or "")):
        raise _unreadable("host or port is none: in a URI, percent-encode the password")
    port = f":{params['port']}" if params.get("port") else ""
    database = f"/{params['dbname']}" if params.get("dbname") and "@" not in str(params["dbname"]) else ""
    return target_from_extra(f"{host}{port}{database}", params, {}, arguments)


def _unreadable(reason: str) -> UsageError:
    return UsageError("could not establish connection", None, "08001", reason)


@dataclass(frozen=True)
class _Option:
    """One of our own options: a field of the connection, or an argument of an operator or the hook."""

    conn_id: str
    name: str
    is_argument: bool

    def wrong(self, value: object, allowed: str, *, part: object = None) -> UsageError:
        """Return the error with the place of the wrong *value*, or of its *part*, and the allowed values."""
        name = self.name if part is None else f"{self.name}.{part}"
        where = f"argument {name!r}" if self.is_argument else f"field {name!r} of the connection"
        return UsageError(f"{where} is {value!r}, but must be {allowed}", self.conn_id)


def _boolean(option: _Option, value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    # Airflow shows "***" for every field with "password" in its name, and its form may send that
    # back. Then the safe value is taken.
    if text in ("true", "t", "yes", "on", "1", "none", "", "***"):
        return True
    if text in ("false", "f", "no", "off", "0"):
        return False
    raise option.wrong(value, "true or false")


def _psycopg_arguments(conn_id: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: extra[name] for name in sorted(PSYCOPG_ARGUMENTS.intersection(extra))}
    if objects := [name for name in given if name not in ("autocommit", "prepare_threshold")]:
        raise UsageError(
            f"field {objects[0]!r} of the connection would have to be a Python object",
            conn_id,
            hint='for rows as dicts or named tuples "cursor": "dictcursor" or "namedtuplecursor"; else set'
            " it on the result of get_conn()",
        )
    if "autocommit" in given:
        given["autocommit"] = _boolean(_Option(conn_id, "autocommit", is_argument=False), given["autocommit"])
    if given.get("prepare_threshold") is not None:
        text = str(given["prepare_threshold"]).strip()
        if not text.isdecimal():
            option = _Option(conn_id, "prepare_threshold", is_argument=False)
            raise option.wrong(text, "a number of executions, or null for never")
        given["prepare_threshold"] = int(text)
    return given


def _schema_name(option: _Option, value: object) -> str:
    if value is None or value == "":
        return Target.job_schema
    if not isinstance(value, str) or "\0" in value or len(value.encode()) > _NAME_BYTES:
        raise option.wrong(value, "the name of a schema, of at most 63 bytes")
    return value


def _role_names(option: _Option, value: object) -> tuple[str, ...]:
    """Return the names from a list, from a JSON text of a list, or from a text with commas."""
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except ValueError:
                raise option.wrong("not JSON", 'JSON like ["dba", "etl_owners"]') from None
        else:
            value = [name.strip() for name in str(value).split(",")]
    if not isinstance(value, list | tuple):
        raise option.wrong(type(value).__name__, "a list of names of roles")
    for name in value:
        if not isinstance(name, str) or not 0 < len(name.encode()) <= _NAME_BYTES or "\0" in name:
            raise option.wrong(name, "the name of a role, of 1 to 63 bytes")
    return tuple(value)


def _port(option: _Option, value: object) -> int | None:
    if value is None or value == "":
        return None
    text = str(value).strip()
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise option.wrong(value, "a port number from 1 to 65535")
    return int(text)


def parse_session_settings(conn_id: str, value: object) -> dict[str, str]:
    """Return run-time parameters by name from an argument: a mapping, or its JSON text.

    :raises UsageError: if it isn't a JSON object, a name can't be a parameter's, or a value is not
        a text, number or boolean.
    """
    return _settings(_Option(conn_id, "session_settings", is_argument=True), value)


def _settings(option: _Option, value: object) -> dict[str, str]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise option.wrong("not JSON", 'JSON like {"work_mem": "64MB"}') from None
    if not isinstance(value, Mapping):
        raise option.wrong(type(value).__name__, "an object of names and values")
    settings: dict[str, str] = {}
    for name, setting in value.items():
        if not _SETTING.match(str(name)):
            raise option.wrong(name, "parameter names such as work_mem")
        if isinstance(setting, bool):
            setting = "on" if setting else "off"
        if not isinstance(setting, str | int | float):
            raise option.wrong(type(setting).__name__, "text or a number", part=name)
        if "\0" in str(setting):
            raise option.wrong("text with a NUL character", "text without one", part=name)
        settings[str(name)] = str(setting)
    return settings


def application_name(dag_id: str, task_id: str, run_id: str, map_index: int = -1) -> str:
    """Return the name that tells a DBA which task a session belongs to, at most 63 bytes.

    ``dag.task[map_index] 2026-11-22T06:00:00``. If that is too long, first the run is shortened to its
    date and time, then dag and task in their middle (``begin~end``). Characters
    that PostgreSQL doesn't show (other than printable ASCII) become ``?``.
    """
    run = _RUN_ID.match(run_id)
    when = _printable(run.group(1) if run else run_id)
    suffix = f"[{map_index}]" if map_index >= 0 else ""
    dag, task = _printable(dag_id), _printable(task_id)
    room = _NAME_BYTES - len(f".{suffix} ")
    when = _shortened(when, max(19, room - len(dag) - len(task)))
    room -= len(when)
    if len(dag) + len(task) > room:
        half = room // 2
        dag = _shortened(dag, max(half, room - len(task)))
        task = _shortened(task, room - len(dag))
    return f"{dag}.{task}{suffix} {when}"


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _shortened(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    tail = (size - 1) // 2
    return f"{text[: size - 1 - tail]}~{text[len(text) - tail :]}"
