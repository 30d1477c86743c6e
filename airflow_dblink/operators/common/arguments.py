"""Checks of arguments that a template may have turned into text, or emptied, or that have a wrong type."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow_dblink.core.errors import UsageError


def flag(name: str, value: Any) -> bool:
    """Return a bool that a template may have turned into text.

    :raises UsageError: for anything else.
    """
    text = str(value).strip().lower()
    if isinstance(value, bool | str) and text in ("true", "false"):
        return text == "true"
    raise UsageError(f"{name} must be true or false, got {value!r}")


def or_none(value: Any) -> Any:
    """Return *value*, or ``None`` for the text that a template makes of it."""
    return None if isinstance(value, str) and value.strip().lower() == "none" else value


def number(name: str, value: Any) -> float | None:
    """Return a number that a template may have turned into text; ``None`` for ``None`` and its text.

    :raises UsageError: for anything else, also for an empty text.
    """
    if value is None or str(value).strip().lower() == "none":
        return None
    try:
        return float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number or None, got {value!r}") from None


def whole_number(name: str, value: Any, *, least: int) -> int:
    """Return an integer that a template may have turned into text.

    :raises UsageError: for anything else, and for less than *least*.
    """
    found = value
    if isinstance(value, str) and value.strip().isdecimal():
        found = int(value)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise UsageError(f"{name} must be an integer of at least {least}, got {value!r}")
    return found


def demand_timedelta(name: str, value: object) -> None:
    """Raise unless an argument that no template gives is a timedelta.

    :raises UsageError: says its type.
    """
    if not isinstance(value, timedelta):
        raise UsageError(f"{name} must be a timedelta, got {type(value).__name__}")


def demand_seconds(name: str, value: object) -> None:
    """Raise unless an argument that no template gives is a number of seconds above 0.

    :raises UsageError: shows the value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{name} must be a number of seconds above 0, got {value!r}")


def demand_text(name: str, value: Any) -> None:
    """Raise unless an argument that was given is a text with a value, also after its template is rendered.

    Jinja writes ``None`` for a missing value, which could be taken for a table, a file or a condition.

    :raises UsageError: tells whether it has no value, a wrong type, or a NUL character.
    """
    if value is not None and not isinstance(value, str):
        raise UsageError(f"{name} must be text, got {type(value).__name__}")
    if value is not None and "\0" in value:
        raise UsageError(f"{name} holds a NUL character, which PostgreSQL can't take")
    text = "None" if value is None else value.strip()
    if text == "None" or (not text and name != "sql"):  # an empty script gets a better error elsewhere
        raise UsageError(
            f"{name} has no value ({text or 'empty text'})",
            hint="check what its template renders to, and whether the task before it returned a value",
        )


def plan_of(value: Any) -> Mapping[str, Any] | None:
    """Return the plan in a dry run's result, or in the text that a template made of it.

    :raises UsageError: if *value* holds no plan.
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # Jinja writes Python's literals
        except (ValueError, SyntaxError):
            try:
                value = json.loads(value)
            except ValueError:
                raise UsageError(
                    "plan must be the result of a dry run (plan_only=True), got other text"
                ) from None
    if isinstance(value, Mapping) and isinstance(value.get("plan"), Mapping):
        value = value["plan"]
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"plan must be the result of a dry run (plan_only=True), got {type(value).__name__}")
    return value
