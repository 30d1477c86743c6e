"""What a connection says that Airflow doesn't find, or can't find now."""

from __future__ import annotations

import asyncio

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_dblink.core.errors import DblinkError
from airflow_dblink.hooks.dblink import DblinkHook


class Away:
    """A secrets backend that doesn't answer."""

    def get_connection(self, conn_id: str) -> None:
        raise ConnectionError(conn_id)


@pytest.mark.parametrize("away", [True, False])
def test_a_missing_connection_is_named_with_what_to_do(away: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow raises the same error while a backend is away. So its type stays, which allows a retry."""
    if away:
        loaded = "airflow.sdk.execution_time.supervisor.ensure_secrets_backend_loaded"
        monkeypatch.setattr(loaded, lambda: [Away()])
    hook = DblinkHook(dblink_conn_id="shop_dbb")
    with pytest.raises(AirflowNotFoundException, match="`shop_dbb` isn't defined: create it") as caught:
        hook.target()
    assert "AIRFLOW_CONN_SHOP_DBB" in str(caught.value)
    assert not isinstance(caught.value, DblinkError)


def test_a_trigger_is_told_the_same() -> None:
    with pytest.raises(AirflowNotFoundException, match="AIRFLOW_CONN_SHOP_DBB"):
        asyncio.run(DblinkHook(dblink_conn_id="shop_dbb").atarget())
