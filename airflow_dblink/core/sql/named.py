"""Named SQL statements from the ``.sql`` files of :mod:`airflow_dblink.core.sql`.

A statement begins with ``-- name: some_name``; the comment lines after it say why. Values
are ``%(name)s`` placeholders, bound by psycopg.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def statements(filename: str) -> dict[str, str]:
    """Return the statements of one file of ``core/sql`` by name.

    :raises ValueError: if a name is used twice, or text stands before the first name.
    """
    text = files("airflow_dblink.core.sql").joinpath(filename).read_text(encoding="utf-8")
    head, *parts = _NAME.split(text)
    if head.strip():
        raise ValueError(f"{filename}: text before the first '-- name:' line")
    named: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in named:
            raise ValueError(f"{filename}: statement {name!r} is named twice")
        named[name] = body.strip().rstrip(";")
    return named
