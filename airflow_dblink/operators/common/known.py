"""The checks in an operator's constructor, of values that are known when the DAG is parsed.

Templates, files of SQL and results of other tasks only become known in the task. There ``execute`` makes the
same checks again, except the one of ``params``, which guesses from the text of the Dag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.remote_sets.remote import Remote
from airflow_dblink.core.sqltext.lexer import tokens
from airflow_dblink.core.sqltext.rules import PLACEHOLDER
from airflow_dblink.core.transfer.swappable import SWAP_TIMEOUT

_TEMPLATES = ("{{", "{%", "{#")
#: Valid values that stand in for arguments that aren't known yet.
_STAND_INS: dict[str, Any] = {
    **dict.fromkeys(("sql", "source_sql", "pre_sql", "post_sql", "pause_while"), "SELECT 1"),
    **dict.fromkeys(("source_table", "destination_table", "watermark_column", "xid_column"), "x"),
    **dict.fromkeys(("path", "statements_path", "channel", "payload"), "x"),
    **dict.fromkeys(("topic", "claimed_by", "event_schema"), "x"),
    "limit": 1,
    **dict.fromkeys(("insert", "update", "delete"), True),
    **dict.fromkeys(("plan_only", "allow_empty_source"), False),
    **dict.fromkeys(("columns", "key", "remotes", "session_settings", "replace_above"), None),
    **dict.fromkeys(("max_mb_per_s", "exclude", "schemas", "source_parameters"), None),
    "part_column": "x",
    "tables": ["x"],
    **dict.fromkeys(("max_delete_fraction", "max_change_fraction", "verify"), None),
    "where": "true",
    "watermark_until": "0",
    "method": "auto",
    "plan": {"seed": 0, "digest": "", "arguments": ""},
}


def is_known(value: Any, files: tuple[str, ...] = (), begins: tuple[str, ...] = _TEMPLATES) -> bool:
    """Return whether the task will have this *value*: it holds no template, no task's result, no file.

    :param files: endings of the names of files that are read.
    :param begins: marks at which templates begin.
    """
    if isinstance(value, str):
        return not any(begin in value for begin in begins) and not value.endswith(files)
    if isinstance(value, Remote):
        return is_known([value.conn_id, value.sql, value.parameters], files, begins)
    if isinstance(value, Mapping):
        return all(is_known(each, files, begins) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple | set):
        return all(is_known(each, files, begins) for each in value)
    # An XComArg, and the form of a mapped argument, have this attribute.
    return not hasattr(value, "iter_references")


def _begins(operator: BaseOperator) -> tuple[str, ...]:
    """Return the marks at which templates begin: a Dag may give Jinja other ones."""
    dag = operator.get_dag()
    given = (dag.jinja_environment_kwargs if dag else None) or {}
    if given.get("line_statement_prefix") or given.get("line_comment_prefix"):
        return ("",)  # these need no mark: any text may be a template
    names = ("variable_start_string", "block_start_string", "comment_start_string")
    return tuple(given.get(name, usual) for name, usual in zip(names, _TEMPLATES, strict=True))


@contextmanager
def constructing(operator: BaseOperator) -> Iterator[None]:
    """Turn a constructor's UsageError into an error that no retry follows: a mapped task is constructed late.

    :raises AirflowFailException: names the operator, its task, and what is wrong.
    """
    try:
        yield
    except UsageError as error:
        raise AirflowFailException(f"{type(operator).__name__} {operator.task_id!r}: {error}") from None


def check_known(operator: BaseOperator) -> None:
    """Make the operator's early checks of all arguments that are known.

    Call this last in a constructor. A user's subclass isn't checked, since it may set more arguments later.

    :raises AirflowFailException: names the mistake; in a mapped task, too, no retry helps.
    """
    kind = type(operator)
    if not kind.__module__.startswith("airflow_dblink."):
        return
    view: Any = object.__new__(kind)  # the operator itself keeps its templates
    view.__dict__.update(operator.__dict__)
    files, begins = tuple(kind.template_ext), _begins(operator)
    for name in kind.template_fields:
        if not is_known(getattr(operator, name), files, begins):
            view.__dict__[name] = _stand_in(name, getattr(operator, name))
    if not is_known(getattr(operator, "mode", None), begins=begins):
        view.__dict__["mode"] = _any_mode(view)
    with constructing(operator):
        view._check_early()
        if view._given_params:
            _refuse_params(view, operator)


def _any_mode(view: Any) -> str:
    """Return a mode that goes together with the other arguments."""
    if view.key is not None:
        return "upsert"
    wants_replace = getattr(view, "verify", None) == "checksum" or getattr(view, "rebuild_indexes", None)
    if getattr(view, "like", None) == "all":
        return "create"
    waits = getattr(view, "old_snapshots_timeout", None) is not None
    if waits or getattr(view, "swap_timeout", SWAP_TIMEOUT) != SWAP_TIMEOUT:
        return "swap"
    return "replace" if wants_replace else "append"


def _stand_in(name: str, value: Any) -> Any:
    if name.endswith("conn_id"):  # errors show this name
        return value if isinstance(value, str) else "(of another task)"
    return _STAND_INS.get(name)


def _refuse_params(view: Any, operator: BaseOperator) -> None:
    """Raise for ``params``, Airflow's argument for templates, if they seem to be values for placeholders.

    :param view: *operator* with its known values. (An argument with an unknown value counts as given.)
    :raises UsageError: names the argument for these values.
    """
    for name in ("sql", "source_sql", "where"):
        values = f"{name.removesuffix('sql')}parameters" if name != "where" else "where_parameters"
        text = getattr(view, name, None)
        if text and getattr(operator, values) is None and (found := _placeholder(text)):
            raise UsageError(
                f"params is given, but the placeholder {found} in {name} takes its value from {values}",
                hint=f"{values}=...; params is Airflow's own, for templates: {{{{ params.name }}}}",
            )


def _placeholder(text: str) -> str | None:
    """Return the first placeholder that stands in no text literal."""
    for _, start, _ in tokens(text):
        if found := PLACEHOLDER.match(text, start):
            return found[0]
    return None
