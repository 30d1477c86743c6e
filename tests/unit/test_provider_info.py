"""What Airflow asks of a provider, held against Airflow's own schemas and our own modules."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest
from airflow.sdk import BaseOperator

import airflow_dblink
from airflow_dblink.core.server.target import OWN_OPTIONS
from airflow_dblink.provider_info import get_provider_info

INFO = get_provider_info()


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(Path(airflow.__file__).with_name(name).read_text())
    return schema


def test_it_is_valid_for_airflow_at_run_time() -> None:
    jsonschema.validate(INFO, _schema("provider_info.schema.json"))


def test_it_is_valid_for_airflows_full_schema() -> None:
    # What only Airflow's own release process needs; the rest is checked in full.
    release = {"versions": [airflow_dblink.__version__], "state": "ready", "lifecycle": "production"}
    release |= {"source-date-epoch": 1_700_000_000}  # type: ignore[dict-item]
    jsonschema.validate({**release, **INFO}, _schema("provider.yaml.schema.json"))


def test_the_name_is_the_distributions() -> None:
    distribution = importlib.metadata.distribution("airflow-dblink")

    assert INFO["package-name"] == distribution.metadata["Name"]
    (entry,) = distribution.entry_points.select(group="apache_airflow_provider")
    assert entry.load() is get_provider_info


@pytest.mark.parametrize("kind", ["operators", "hooks", "sensors", "triggers"])
def test_every_module_is_listed_and_imports(kind: str) -> None:
    listed = {
        module
        for group in INFO.get(kind, [])
        for module in group["python-modules"]
        if importlib.import_module(module)
    }
    package = Path(airflow_dblink.__file__).parent / kind
    there = {f"airflow_dblink.{kind}.{path.stem}" for path in package.glob("[!_]*.py")}
    assert listed == there


def test_integrations_are_declared() -> None:
    declared = {integration["integration-name"] for integration in INFO["integrations"]}

    used = {group["integration-name"] for kind in ("operators", "hooks") for group in INFO[kind]}
    assert used <= declared


def test_the_connection_type_is_the_hooks() -> None:
    (connection_type,) = INFO["connection-types"]
    module, _, name = connection_type["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)

    assert hook.conn_type == connection_type["connection-type"]
    assert hook.hook_name == connection_type["hook-name"]
    assert module in INFO["hooks"][0]["python-modules"]


def test_the_form_has_our_options_and_nothing_that_libpq_would_refuse() -> None:
    (connection_type,) = INFO["connection-types"]

    assert set(connection_type["conn-fields"]) - {"sslmode"} == OWN_OPTIONS


def test_operators_say_what_is_templated() -> None:
    for group in INFO["operators"]:
        for module_name in group["python-modules"]:
            module = importlib.import_module(module_name)
            for operator in vars(module).values():
                if (
                    isinstance(operator, type)
                    and issubclass(operator, BaseOperator)
                    and operator.__module__ == module_name
                ):
                    for name in operator.template_fields:
                        assert f":param {name}:" in (operator.__doc__ or "") or name == "session_settings"
