"""Event loops of tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def run_alone(act: Callable[[], Awaitable[T]], timeout_s: float) -> T:
    """Run *act* in an event loop of its own; fail if it leaves a task behind."""

    async def run() -> T:
        result = await asyncio.wait_for(act(), timeout_s)
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            _, left = await asyncio.wait(left, timeout=10)
        assert not left, f"left over: {left}"
        return result

    return asyncio.run(run())
