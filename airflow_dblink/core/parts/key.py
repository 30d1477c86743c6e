"""What a load in parts is known by: one number, from which the names of all that it leaves are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Self

from airflow_dblink.core.errors import UsageError

_DIGITS = 16

#: What to do if a load can't go on, for hints.
ANEW = "clear the task that plans the load, with all that come after it"


@dataclass(frozen=True)
class LoadKey:
    """The key of one load: 64 bits.

    :ivar text: 16 hexadecimal digits.
    """

    text: str

    @classmethod
    def of(cls, names: Mapping[str, Any]) -> Self:
        """Return the key for a load that *names*, JSON-able, tell from all others."""
        return cls(sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()[:_DIGITS])

    def __post_init__(self) -> None:
        if len(self.text) != _DIGITS or not set(self.text) <= set("0123456789abcdef"):
            raise UsageError(f"the key of a load has {_DIGITS} hexadecimal digits, got {self.text!r}")

    @property
    def number(self) -> int:
        """The key as PostgreSQL's bigint."""
        return _signed(int(self.text, 16), 64)

    @property
    def high(self) -> int:
        """The first half, as pg_locks shows it."""
        return int(self.text[:8], 16)

    @property
    def low(self) -> int:
        """The second half, as pg_locks shows it."""
        return int(self.text[8:], 16)

    @property
    def params(self) -> dict[str, int]:
        """The halves, for statements."""
        halves = {"high": self.high, "low": self.low}
        return {**halves, **{f"{name}_int": _signed(half, 32) for name, half in halves.items()}}

    @property
    def shadow(self) -> str:
        """The name of the table that is loaded."""
        return f"dblink_load_{self.text}"

    @property
    def ledger(self) -> str:
        """The name of the table that says which parts are done."""
        return f"dblink_load_{self.text}_parts"


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number
