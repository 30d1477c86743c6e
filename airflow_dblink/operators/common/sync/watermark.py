"""A sync's watermark in the state of an asset, under a key that is made from the sync's arguments."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.asset import Asset, AssetNameRef, AssetUriRef
from psycopg.types.json import Json, Jsonb

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.once.tries import Store
from airflow_dblink.core.server.side import Side
from airflow_dblink.core.sync.watermark import is_higher
from airflow_dblink.operators.common.base import DblinkBaseOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

WATERMARK = "airflow_dblink_watermark"
_HINT = "watermark_column needs an outlet: outlets=[Asset(...)], the destination's; with several, name one:"


def watermark_key(work: Sequence[Any], operations: Sequence[object]) -> str:
    """Return the state key: a hash of all arguments that select rows, because tasks share assets.

    With one key for two tasks that read different rows, or write them differently, each would skip rows that
    only the other has read. So if an argument changes from run to run, each run has a new key, and reads
    everything.

    :param work: values of the arguments that select the rows and name their destination.
    :param operations: whether rows are inserted, updated, deleted; a template turns these into text.
    """
    switches = [str(each).strip().lower() for each in operations]
    text = json.dumps([*work, *switches], default=_told_apart)
    return f"{WATERMARK}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class WatermarkOperator(DblinkBaseOperator):
    """Base of the operator that keeps a watermark in the state of an asset; not one itself.

    :param watermark_column: source column that grows with every change. (templated)
    :param watermark_overlap: distance below the watermark from which rows are read again (timedelta, or a
        number).
    :param watermark_until: read only rows below this value. (templated)
    :param watermark_asset: the inlet or outlet that has the watermark; by default the task's only one.
    """

    def __init__(
        self,
        *,
        watermark_column: str | None = None,
        watermark_overlap: timedelta | float | None = None,
        watermark_until: str | None = None,
        watermark_asset: Asset | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.watermark_column = watermark_column
        self.watermark_overlap = watermark_overlap
        self.watermark_until = watermark_until
        self.watermark_asset = watermark_asset
        self._note_given(watermark_column=watermark_column)

    @property
    @abstractmethod
    def watermark_key(self) -> str:
        """The watermark's key in the asset's state; see :func:`watermark_key`."""

    def _watermark_store(self, context: Context) -> Store | None:
        """Return the state of the asset that has the watermark, ``None`` without a watermark.

        :raises UsageError: if the task has no such asset, or several.
        """
        if self.watermark_column is None:
            return None
        of_task = [*self.inlets, *self.outlets]
        return watermark_store(context, self.watermark_asset, of_task, self.watermark_key)

    def _advance(self, store: Store, source_conn_id: str, result: Mapping[str, Any]) -> None:
        """Keep the watermark of *result*, unless a later run has kept a higher one."""
        found = result.get("watermark")
        if found is None:
            return
        kept = store.get(self.watermark_key)
        if kept is not None:
            with self._hook(source_conn_id) as hook:
                source = Side(hook.link().connection, source_conn_id)
                if not is_higher(source, result["watermark_type"], found, kept):
                    return
        store.set(self.watermark_key, found)
        self.log.info(
            "Watermark of %s: %s (asset state %s)", self.watermark_column, found, self.watermark_key
        )


def _told_apart(value: Any) -> Any:
    """Return a form of a parameter's value that JSON can hold, a different one for each value."""
    if isinstance(value, Json | Jsonb):  # str() would shorten it
        return value.obj
    return str(value)


def watermark_store(context: Context, asset: object, of_task: Sequence[object], key: str) -> Store:
    """Return the state of the asset that has the watermark.

    :param asset: an asset of the task; ``None`` for its only one.
    :param of_task: the task's inlets and outlets.
    :param key: the watermark's key.
    :raises UsageError: if the task has no such asset, or several.
    """
    if not isinstance(asset, Asset | AssetNameRef | AssetUriRef | None):
        raise UsageError(f"watermark_asset must be an Asset, got {type(asset).__name__}")
    stores: Any = context.get("asset_state_store")
    if stores is None:  # Airflow gives none to a task without assets
        raise _no_asset("which has none")
    found: Store = stores
    try:
        if asset is not None:
            found = stores[asset]
        else:
            found.get(key)  # of the task's only asset
    except (KeyError, ValueError):
        names = sorted({_name(each) for each in of_task})
        has = f"which has {len(names)}: {', '.join(names)}" if names else "which has none"
        if names and asset is not None:
            has += f"; {_name(asset)} is none of them"
        raise _no_asset(has) from None
    return found


def _no_asset(why: str) -> UsageError:
    return UsageError(
        f"the watermark belongs to an asset of the task, {why}", hint=f"{_HINT} watermark_asset=..."
    )


def _name(asset: Any) -> str:
    return repr(getattr(asset, "name", None) or getattr(asset, "uri", None) or type(asset).__name__)
