"""Whether Airflow's api-server may log in to a connection to show a page to a user.

It may for a user who may read the connection. It may for a reader of a Dag if one of its tasks names the
connection: in the Dag's code, or in the rendered fields that Airflow recorded of the task. No user can write
either of them; XCom and state entries, which some users can write, don't count.
"""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import ConnectionDetails
from airflow.models.connection import Connection
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.utils.session import create_session
from sqlalchemy import select


def may_read_connection(user: BaseUser, conn_id: str) -> bool:
    """Whether Airflow shows the connection to that user."""
    return get_auth_manager().is_authorized_connection(
        method="GET",
        details=ConnectionDetails(conn_id=conn_id, team_name=Connection.get_team_name(conn_id)),
        user=user,
    )


def uses_connection(dag_id: str, conn_id: str) -> bool:
    """Whether a task of the Dag names the connection, in the newest code or in recorded fields.

    Airflow records the fields of a task's newest runs only (``[core] max_num_rendered_ti_fields_per_task``).
    """
    recorded = RenderedTaskInstanceFields
    with create_session() as session:
        dag = SerializedDagModel.get(dag_id, session=session)
        if dag is not None and _names((dag.data or {}).get("dag", {}).get("tasks", []), conn_id):
            return True
        rendered = (
            select(recorded.task_id)
            .where(recorded.dag_id == dag_id, recorded.rendered_fields["conn_id"].as_string() == conn_id)
            .limit(1)
        )
        return session.execute(rendered).first() is not None


def _names(part: Any, conn_id: str) -> bool:
    """Whether *part* of a serialized Dag has a field for a connection's id with the value *conn_id*."""
    if isinstance(part, dict):
        return any(
            _holds(value, conn_id) if _is_conn_id(key) else _names(value, conn_id)
            for key, value in part.items()
        )
    return isinstance(part, list) and any(_names(each, conn_id) for each in part)


def _is_conn_id(key: object) -> bool:
    return key == "conn_id" or str(key).endswith("_conn_id")


def _holds(value: Any, conn_id: str) -> bool:
    """Whether *value* is the id, or a list with it, as in a mapped task."""
    if isinstance(value, dict):
        return any(_holds(each, conn_id) for each in value.values())
    if isinstance(value, list):
        return any(_holds(each, conn_id) for each in value)
    return bool(value == conn_id)
