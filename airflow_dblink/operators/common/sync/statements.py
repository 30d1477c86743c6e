"""A sync's plan as a file of dblink's statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.link.messages import Wire
from airflow_dblink.core.sync.changes.statements import statements_of_plan
from airflow_dblink.core.sync.spec import Spec
from airflow_dblink.core.sync.work import Work
from airflow_dblink.operators.common.base import DblinkBaseOperator
from airflow_dblink.operators.common.files import FileWritingOperator, demand_file, demand_mode, new_file


class StatementsFileOperator(FileWritingOperator, DblinkBaseOperator):
    """Base of the operator that writes its plan to a file; not one itself.

    :param statements_path: URL of the file on Airflow's object storage. (templated)
    :param statements_conn_id: Airflow connection of the object storage. (templated)
    """

    def __init__(
        self, *, statements_path: str | None = None, statements_conn_id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.statements_path = statements_path
        self.statements_conn_id = statements_conn_id
        self._note_given(statements_path=statements_path)

    def _statements_writer(self, link: Wire) -> Callable[[Work], None] | None:
        path, conn_id = self.statements_path, self.statements_conn_id
        if path is None:
            return None
        mode = demand_mode(self.file_mode)
        with new_file(path, conn_id, mode):  # an earlier run's statements must not be taken for this one's
            pass

        def write(work: Work) -> None:
            with new_file(path, conn_id, mode) as file:
                for statement in statements_of_plan(work, link):
                    self._check()
                    file.write(statement)
                    file.write(b";\n")

        return write

    def _demand_statements_shown(self, spec: Spec) -> None:
        """Raise if *statements_path* is given, and rows are replaced, which no statement shows.

        :raises UsageError: names the argument.
        """
        if self.statements_path is None:
            return
        replaces = spec.method == "replace" or spec.replace_above is not None
        if replaces or spec.on_conflict == "replace":
            raise UsageError(
                "statements_path doesn't go together with replacing rows, which no statement could show",
                hint="leave one of them out",
            )
        demand_mode(self.file_mode)

    def _demand_statements_file(self) -> None:
        """Raise unless *statements_path*, if given, can be a file's; this looks at the object storage.

        :raises UsageError: says why not.
        """
        if self.statements_path is not None:
            demand_file("statements_path", self.statements_path, self.statements_conn_id, self.base_path)
