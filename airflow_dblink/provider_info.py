"""The provider's metadata for Airflow. Imports nothing, since every ``airflow`` command reads it."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the provider's metadata, in the form of Airflow's ``provider.yaml.schema.json``."""
    return {
        "package-name": "airflow-dblink",
        "name": "PostgreSQL dblink",
        "description": "Cross-database PostgreSQL jobs: named links, exactly-once statements, COPY transfer.",
        "integrations": [
            {
                "integration-name": "PostgreSQL dblink",
                "external-doc-url": "https://www.postgresql.org/docs/current/dblink.html",
                "tags": ["software"],
            }
        ],
        "connection-types": [
            {
                "connection-type": "dblink",
                "hook-class-name": "airflow_dblink.hooks.dblink.DblinkHook",
                "hook-name": "PostgreSQL dblink",
                "ui-field-behaviour": {
                    "hidden-fields": [],
                    "relabeling": {"schema": "Database"},
                    "placeholders": {"port": "5432", "extra": '{"connect_timeout": 10}'},
                },
                "conn-fields": _connection_fields(),
            }
        ],
        "hooks": _modules("hooks", "dblink"),
        "operators": _modules(
            *(
                "operators",
                "events",
                "execute",
                "fetch",
                "jobs",
                "new_rows",
                "parts",
                "query",
                "sync",
                "transfer",
            )
        ),
        "sensors": _modules("sensors", "base", "job", "sql"),
        "triggers": _modules("triggers", "base", "events", "job", "sql"),
        "config": {
            "dblink": {
                "description": "Settings of airflow-dblink.",
                "options": {
                    "job_page": {
                        "description": (
                            "Whether Airflow's api-server has pages of remote jobs, for which it logs in "
                            "to the databases that they run in, and tasks link to them."
                        ),
                        "version_added": None,
                        "type": "boolean",
                        "example": None,
                        "default": "True",
                    }
                },
            }
        },
        "queues": ["airflow_dblink.queues.events.DblinkMessageQueueProvider"],
        "extra-links": ["airflow_dblink.links.job.DblinkJobLink"],
        "cli": ["airflow_dblink.cli.get_commands"],
    }


def _modules(kind: str, *names: str) -> list[dict[str, Any]]:
    modules = [f"airflow_dblink.{kind}.{name}" for name in names]
    return [{"integration-name": "PostgreSQL dblink", "python-modules": modules}]


def _connection_fields() -> dict[str, Any]:
    return {
        "sslmode": {
            "label": "TLS (sslmode)",
            "description": "libpq's default is prefer; require and above insist.",
            "schema": {
                "type": "string",
                "enum": ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"],
                "default": "prefer",
            },
        },
        "password_required": {
            "label": "Password required",
            "description": "Off: the worker's own identity (OS user, .pgpass, PGPASSWORD) may be used.",
            "schema": {"type": "boolean", "default": True},
        },
        "pooling_mode": {
            "label": "Pooler mode",
            "description": "Mode of the pooler that host and port lead to, if any.",
            "schema": {"type": "string", "enum": ["none", "session", "transaction"], "default": "none"},
        },
        "direct_host": {
            "label": "Direct host",
            "description": "Host that doesn't lead through the pooler; empty: the same host.",
            "schema": {"type": ["string", "null"]},
        },
        "direct_port": {
            "label": "Direct port",
            "description": "Port that doesn't lead through the pooler; empty: the same port.",
            "schema": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
        },
        "job_schema": {
            "label": "Job schema",
            "description": "Schema of the table of remote jobs; empty: airflow_dblink.",
            "schema": {"type": ["string", "null"]},
        },
        "trusted_owners": {
            "label": "Trusted owners",
            "description": "Roles, separated by commas, that may own the job schema: with all their members.",
            "schema": {"type": ["string", "null"]},
        },
        "session_settings": {
            "label": "Session settings",
            "description": 'Run-time parameters of every session, as JSON: {"work_mem": "64MB"}',
            "schema": {"type": ["string", "null"], "format": "json"},
        },
    }
