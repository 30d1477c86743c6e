"""The commands of ``airflow dblink``: their frame, their connection, and what they print.

A command that fails writes the reason as one line to stderr, with a hint if there is one, and exits with 1.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import wraps

from airflow.cli.simple_table import AirflowConsole
from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from airflow.utils.providers_configuration_loader import providers_configuration_loaded

from airflow_dblink.core.errors import DblinkError, UsageError
from airflow_dblink.core.masking import without_credentials
from airflow_dblink.core.server.side import Side
from airflow_dblink.hooks.dblink import DblinkHook

Command = Callable[[Namespace], None]

_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"


def command(function: Command) -> Command:
    """Make *function* a command of Airflow: quiet, and without a traceback for users' mistakes."""

    @suppress_logs_and_warning
    @providers_configuration_loaded
    @wraps(function)
    def run(args: Namespace) -> None:
        try:
            with _metadata_database():
                function(args)
        except AirflowNotFoundException:
            raise SystemExit(
                f"There is no Airflow connection {args.conn_id!r}, or it can't be read."
                "\nHINT:  airflow connections list shows those of the metadata database"
            ) from None
        except DblinkError as error:
            raise SystemExit(_explained(error)) from None

    return run


@contextmanager
def _metadata_database() -> Iterator[None]:
    """Let Airflow look for connections in its metadata database, too.

    By default only its servers do that; ``airflow connections test`` uses the same trick.
    """
    before = os.environ.get(_CONTEXT)
    os.environ[_CONTEXT] = "server"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CONTEXT]
        else:
            os.environ[_CONTEXT] = before


def _explained(error: DblinkError) -> str:
    """Return the error as one line, and its hint as another, without the error's context."""
    kind = type(error)
    line = str(kind(error.message, error.connname, error.sqlstate, error.detail))
    line = visible(" ".join(line.replace("\nDETAIL:  ", ": ").split()))
    return f"{line}\nHINT:  {visible(without_credentials(error.hint))}" if error.hint else line


def say(text: str) -> None:
    """Print a line for the user."""
    print(text)  # noqa: T201 - the command's purpose


def visible(text: str, *, keep: str = "") -> str:
    r"""Return *text* with control and invisible characters as escapes: ``\x1b``, ``\u202e``, ``\n``.

    Names and messages come from servers and connections, and could rewrite the user's terminal.

    :param keep: characters that aren't escaped.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text
    )


def demand_visible(name: str, what: str) -> None:
    """Raise if a name would look different in the printed SQL, which a DBA reads before running it.

    :raises UsageError: if the name holds control characters.
    """
    if not name.isprintable():
        raise UsageError(f"{what} {name!r} holds control characters", hint="use another name")


@contextmanager
def side_of(conn_id: str) -> Iterator[Side]:
    """Connect for one command.

    :raises AirflowNotFoundException: if there is no such connection.
    :raises UsageError: if a field of the connection is wrong.
    :raises RemoteError: if the server can't be reached, or refuses.
    """
    with closing(DblinkHook(dblink_conn_id=conn_id).open_direct(conn_id)) as connection:
        yield Side(connection, conn_id)


def show(rows: Sequence[Mapping[str, object]], output: str) -> None:
    """Print rows in the form that ``--output`` asks for."""
    escapes_itself = output in ("json", "yaml")
    nothing = None if escapes_itself else ""
    keep = "\n" if output == "table" else ""  # a table shows where a cell of several lines ends

    def text(value: object) -> str | None:
        if value is None:
            return nothing
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="milliseconds")
        return str(value) if escapes_itself else visible(str(value), keep=keep)

    # A server's text is no markup: "[/]" would fail, and "[b]" would vanish.
    console = AirflowConsole(markup=False, emoji=False)
    console.print_as([{name: text(value) for name, value in row.items()} for row in rows], output=output)


def demand_consent(what: str, *, given: bool) -> None:
    """Ask the user whether to go on, unless they have consented by an option (*given*).

    :raises SystemExit: unless the answer is yes.
    """
    try:
        if given or input(f"{what} Proceed? (y/n)").upper() == "Y":
            return
    except EOFError:
        raise SystemExit("\nNobody is there to answer.\nHINT:  --yes") from None
    raise SystemExit("Cancelled")
