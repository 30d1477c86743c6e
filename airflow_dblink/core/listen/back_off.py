"""How long who waits for a server that is away waits for another try."""

from __future__ import annotations

import random
from collections.abc import Iterator

_FIRST_S = 0.5
_LAST_S = 30.0


def back_off() -> Iterator[float]:
    """Yield seconds to wait before another try: half a second at first, half a minute in the end."""
    seconds = _FIRST_S
    while True:
        yield seconds * random.uniform(0.5, 1.0)  # noqa: S311 - so that not all come back at once
        seconds = min(2 * seconds, _LAST_S)
