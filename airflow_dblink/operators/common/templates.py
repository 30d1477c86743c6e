"""Template fields of operators and sensors: which ones may be files, and whether ``params`` is a mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk import Context

# Template fields that may be the path of a file.
_FROM_FILES = ("sql", "source_sql", "pre_sql", "post_sql", "pause_while", "failure_sql")


class SqlTemplates(BaseOperator):
    """Mixin of the operators and sensors with SQL in their template fields."""

    _given_params = False  # whether the task itself was given params, Airflow's values for templates

    def _note_params(self, arguments: Mapping[str, Any]) -> None:
        dag = self.get_dag()
        # Airflow has added the Dag's params, which any task may use; they are no mistake.
        self._given_params = not set(arguments.get("params") or ()) <= set(dag.params if dag else ())

    def resolve_template_files(self) -> None:
        """Read the files of fields that hold SQL; in other fields ``.sql`` may end a name or a value."""
        for name in self.template_fields:
            path = getattr(self, name, None)
            if name in _FROM_FILES and isinstance(path, str) and path.endswith(tuple(self.template_ext)):
                env = self.get_template_env()
                try:
                    if env.loader is not None:
                        setattr(self, name, env.loader.get_source(env, path)[0])
                except Exception:  # as in Airflow: the Dag is shown all the same, and the task will fail
                    self.log.exception("Failed to resolve template field %r", name)
        self.prepare_template()

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        """Do the same as Airflow, field by field, since only some fields may be files."""
        with_files, without = copy(self), copy(self)
        with_files.template_ext, without.template_ext = type(self).template_ext, ()
        for name in template_fields:
            renders = with_files if name in _FROM_FILES else without
            super(SqlTemplates, renders)._do_render_template_fields(
                parent, (name,), context, jinja_env, seen_oids
            )
