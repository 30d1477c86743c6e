"""Arguments that a template may have made a text."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from airflow_dblink.core.errors import UsageError


def flag(name: str, value: Any) -> bool:
    """Return a bool that a template may have made a text.

    :raises UsageError: for anything else.
    """
    text = str(value).strip().lower()
    if isinstance(value, bool | str) and text in ("true", "false"):
        return text == "true"
    raise UsageError(f"{name} must be true or false, got {value!r}")


def number(name: str, value: Any) -> float | None:
    """Return a number that a template may have made a text; what renders to nothing is no number.

    :raises UsageError: for anything else.
    """
    if value is None or str(value).strip().lower() == "none":
        return None
    try:
        return float("" if isinstance(value, bool) else value)
    except (TypeError, ValueError):
        raise UsageError(f"{name} must be a number or None, got {value!r}") from None


def plan_of(value: Any) -> Mapping[str, Any] | None:
    """Return the plan in what a dry run returned, or in the text that a template made of that.

    :raises UsageError: if there is none in it.
    """
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)  # Jinja writes Python's literals
        except (ValueError, SyntaxError):
            try:
                value = json.loads(value)
            except ValueError:
                raise UsageError(
                    "plan must be what a dry run returned (plan_only=True), got other text"
                ) from None
    if isinstance(value, Mapping) and isinstance(value.get("plan"), Mapping):
        value = value["plan"]
    if value is not None and not isinstance(value, Mapping):
        raise UsageError(f"plan must be what a dry run returned (plan_only=True), got {type(value).__name__}")
    return value
