"""The waiting times between attempts to reach a server that is away."""

from __future__ import annotations

import random
from collections.abc import Iterator

_FIRST_S = 0.5
_LAST_S = 30.0


def back_off() -> Iterator[float]:
    """Yield the seconds to wait before the next attempt: half a second at first, half a minute in the end."""
    seconds = _FIRST_S
    while True:
        yield seconds * random.uniform(0.5, 1.0)  # noqa: S311 - so that not all waiters come back at once
        seconds = min(2 * seconds, _LAST_S)
