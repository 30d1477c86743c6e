"""Where a sync's watermark is kept: in the state of an asset, under a key of the work that it belongs to."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.asset import Asset, AssetNameRef, AssetUriRef
from psycopg.types.json import Json, Jsonb

from airflow_dblink.core.errors import UsageError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_dblink.operators.sync import DblinkSyncOperator

WATERMARK = "airflow_dblink_watermark"
_HINT = "watermark_column needs an outlet: outlets=[Asset(...)], the destination's; with several, say which:"
_OF_THE_WORK = (
    *("destination_conn_id", "destination_table", "source_conn_id", "source_table", "source_sql"),
    *("source_parameters", "where", "where_parameters", "columns", "key", "watermark_column"),
)


def watermark_key(operator: DblinkSyncOperator) -> str:
    """Return the key in the asset's state: of all that says which rows come, since assets are shared.

    Two tasks that bring other rows, or do other things with them, would lose what the other has read. Where
    an argument changes from run to run, each run therefore has a new key, and reads everything.
    """
    work = [getattr(operator, name) for name in _OF_THE_WORK]
    # A template makes them texts.
    work += [str(getattr(operator, name)).strip().lower() for name in ("insert", "update", "delete")]
    text = json.dumps(work, default=_told_apart)
    return f"{WATERMARK}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _told_apart(value: Any) -> Any:
    """Return what JSON can take of a parameter's value, and no other value has."""
    if isinstance(value, Json | Jsonb):  # as text it is cut
        return value.obj
    return str(value)


def watermark_store(operator: DblinkSyncOperator, context: Context) -> Any:
    """Return where the watermark is kept, ``None`` where there is none to keep.

    :raises UsageError: if it can't be told whose the watermark is.
    """
    if operator.watermark_column is None:
        return None
    asset: Any = operator.watermark_asset
    if not isinstance(asset, Asset | AssetNameRef | AssetUriRef | None):
        raise UsageError(f"watermark_asset must be an Asset, got {type(asset).__name__}")
    stores: Any = context.get("asset_state_store")
    if stores is None:  # Airflow gives none to a task without assets
        raise _no_asset("which has none")
    try:
        if asset is not None:
            return stores[asset]
        stores.get(operator.watermark_key)  # of the task's only asset
    except (KeyError, ValueError):
        names = sorted({_name(each) for each in [*operator.inlets, *operator.outlets]})
        has = f"which has {len(names)}: {', '.join(names)}" if names else "which has none"
        if names and asset is not None:
            has += f"; {_name(asset)} is none of them"
        raise _no_asset(has) from None
    return stores


def _no_asset(why: str) -> UsageError:
    return UsageError(
        f"the watermark belongs to an asset of the task, {why}", hint=f"{_HINT} watermark_asset=..."
    )


def _name(asset: Any) -> str:
    return repr(getattr(asset, "name", None) or getattr(asset, "uri", None) or type(asset).__name__)
