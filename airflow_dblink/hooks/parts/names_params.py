"""One name for a statement's values: *params* of dblink's functions, *parameters* of Airflow's methods."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from airflow_dblink.core.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def names_params(function: Callable[P, R]) -> Callable[P, R]:
    """Make *function*, which takes *params*, refuse *parameters* with a hint."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if "parameters" in kwargs:
            raise UsageError(
                f"{function.__name__} takes params, not parameters",
                hint="params=[...] for %s, or params={...} for %(name)s; parameters is the name in operators,"
                " run() and get_records()",
            )
        return function(*args, **kwargs)

    return called
