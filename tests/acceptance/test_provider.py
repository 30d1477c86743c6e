"""Airflow's own commands accept the provider and its connections."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_dblink.embedded.airflow import Airflow
from airflow_dblink.embedded.server import Server

WRONG_PASSWORD = "not-the-password-4711"


@pytest.fixture(scope="module")
def airflow(pair: tuple[Server, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    source, warehouse = pair
    uri = source.airflow_uri(conn_type="dblink")
    connections = {
        "good_postgres": warehouse.airflow_uri(),
        "good_dblink": uri + '?__extra__={"pooling_mode": "session", "session_settings": "{}"}',
        "bad_field": uri + '?__extra__={"direct_port": "many"}',
        "bad_password": uri.replace(source.role_password, WRONG_PASSWORD),
        "bad_host": f"dblink://user:{WRONG_PASSWORD}@127.0.0.1:1/db",
        "no_password": f"dblink://{source.role}@127.0.0.1:{source.port}/dblink",
    }
    with Airflow(tmp_path_factory.mktemp("no_dags"), connections) as airflow:
        yield airflow


def test_providers_get(airflow: Airflow) -> None:
    (found,) = json.loads(airflow.cli("providers", "get", "airflow-dblink", "--output", "json").stdout)
    assert "airflow-dblink" in str(found)
    full = airflow.cli("providers", "get", "airflow-dblink", "--full", "--output", "json").stdout
    assert "airflow_dblink.hooks.dblink.DblinkHook" in full


def test_providers_hooks(airflow: Airflow) -> None:
    hooks = json.loads(airflow.cli("providers", "hooks", "--output", "json").stdout)
    (ours,) = [hook for hook in hooks if hook["connection_type"] == "dblink"]
    assert ours["class"] == "airflow_dblink.hooks.dblink.DblinkHook"
    assert ours["conn_id_attribute_name"] == "dblink_conn_id"
    assert ours["package_name"] == "airflow-dblink"
    assert ours["hook_name"] == "PostgreSQL dblink"


def test_the_form_has_our_fields(airflow: Airflow) -> None:
    behaviours = airflow.cli("providers", "behaviours", "--output", "json").stdout
    assert "dblink" in behaviours
    widgets = airflow.cli("providers", "widgets", "--output", "json").stdout
    for field in ("sslmode", "password_required", "pooling_mode", "direct_host", "direct_port"):
        assert f"extra__dblink__{field}" in widgets


def test_connections_test(airflow: Airflow) -> None:
    done = airflow.cli("connections", "test", "good_dblink")
    assert "Connection success" in done.stdout


@pytest.mark.parametrize(
    ("conn_id", "reason"),
    [
        ("bad_field", "direct_port"),
        ("bad_password", "password authentication failed"),
        ("bad_host", "connection refused"),
        ("no_password", "password or GSSAPI delegated credentials required"),
    ],
)
def test_connections_test_says_what_is_wrong(airflow: Airflow, conn_id: str, reason: str) -> None:
    done = airflow.cli("connections", "test", conn_id, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert conn_id in said
    assert reason.lower() in " ".join(said.lower().split())
    assert WRONG_PASSWORD not in said


def test_a_connection_of_type_postgres_is_tested_by_its_own_hook(airflow: Airflow) -> None:
    assert "Connection success" in airflow.cli("connections", "test", "good_postgres").stdout


def test_the_package_is_found_by_its_entry_point() -> None:
    import airflow_dblink

    assert (Path(airflow_dblink.__file__).parent / "py.typed").exists()
