"""Facts in asset events: how much a task has changed, for whoever is started by the asset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset
from airflow.sdk.definitions.asset import AssetNameRef, AssetUriRef

if TYPE_CHECKING:
    from airflow.sdk import Context

# Of an operator's result. Only numbers and our own words: no key, value or name of a row.
_NUMBERS = (
    *("rows", "bytes", "seconds", "changed", "inserted", "updated", "deleted", "tables", "parts", "retries"),
    *("row_count", "source_rows", "destination_rows"),
)
_WORDS = ("method", "format", "verified", "snapshot", "command_tag")
_OUTLETS = (Asset, AssetNameRef, AssetUriRef)
_COUNT = re.compile(r"(?:INSERT 0|UPDATE|DELETE|MERGE|COPY) (\d+)")
# Not SELECT: it makes a table (INTO), or calls a function that writes.
_CHANGES_NOTHING = re.compile(r"(?:SET|SHOW|LOCK TABLE|ANALYZE|(?:FETCH|MOVE) \d+)")


def facts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts in an operator's *result*, as values for JSON."""
    facts = {name: result[name] for name in _NUMBERS if isinstance(result.get(name), int | float)}
    facts |= {name: result[name] for name in _WORDS if isinstance(result.get(name), str)}
    if tags := result.get("command_tags"):
        facts["changed"] = _changed_rows(tags)
    return facts


def _changed_rows(tags: Iterable[str]) -> int:
    return sum(int(found[1]) for tag in tags if (found := _COUNT.fullmatch(tag)))


def has_changed(result: Mapping[str, Any]) -> bool:
    """Return whether the work has changed anything, as far as *result* tells; if it doesn't, then yes."""
    tags = result.get("command_tags")
    if tags is None and (tag := result.get("command_tag")) is not None:
        tags = [tag]
    if tags:
        is_told = all(_COUNT.fullmatch(tag) or _CHANGES_NOTHING.fullmatch(tag) for tag in tags)
        return not is_told or _changed_rows(tags) > 0
    if "inserted" in result:
        return any(result.get(name) for name in ("inserted", "updated", "deleted"))
    return bool(result["changed"]) if isinstance(result.get("changed"), int) else True


def tell_assets(
    context: Context, result: Mapping[str, Any], *, when_changed: bool, changed: bool | None = None
) -> None:
    """Add the facts in *result* to the events of the task's outlets, or leave the events out.

    :param when_changed: leave them out if nothing has changed.
    :param changed: whether something has; ``None``: what the result tells.
    """
    task = context.get("task")
    outlets = [each for each in getattr(task, "outlets", ()) if isinstance(each, _OUTLETS)]
    if not outlets or task is None:
        return
    if when_changed and not (has_changed(result) if changed is None else changed):
        # Airflow emits an event for each outlet that is left when the task ends.
        names = (each.uri if isinstance(each, AssetUriRef) else each.name for each in outlets)
        task.log.info("Nothing has changed: no event for %s", ", ".join(names))
        task.outlets = [each for each in task.outlets if not isinstance(each, _OUTLETS)]
        return
    for outlet in outlets:
        if isinstance(outlet, Asset):  # to a reference Airflow would have to ask its API, which may fail
            context["outlet_events"][outlet].extra.update(facts_of(result))
