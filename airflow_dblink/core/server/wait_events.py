"""dblink's wait events: the reason and the length of a session's waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

#: ``DblinkConnect`` while a link connects, ``DblinkGetConnect`` while a connection for one call
#: does, ``DblinkGetResult`` while a link waits for results. Source: ``pg_wait_events``, type
#: Extension, of PostgreSQL 18.
WaitEvent = Literal["DblinkConnect", "DblinkGetConnect", "DblinkGetResult"]

#: Called after every wait with the event, the connection's id and the seconds.
Observe = Callable[[WaitEvent, str, float], None]

log = logging.getLogger(__name__)


@contextmanager
def waiting(event: WaitEvent, conn_id: str, observe: Observe | None) -> Iterator[None]:
    """Measure the time of this block, whether it fails or not."""
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - began
        log.debug("%s: %s took %.6f s", conn_id, event, seconds)
        if observe is not None:
            observe(event, conn_id, seconds)
