"""Every example Dag can be imported: what its operators' constructors refuse is seen here first."""

from __future__ import annotations

from pathlib import Path

from airflow.dag_processing.dagbag import DagBag

FOLDER = Path(__file__).parents[2] / "dags_examples"


def test_they_can_be_imported() -> None:
    bag = DagBag(FOLDER)

    assert bag.import_errors == {}
    assert len(bag.dags) >= len([path for path in FOLDER.glob("*.py") if path.stem != "__init__"])
