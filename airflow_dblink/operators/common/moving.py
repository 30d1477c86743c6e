"""The base of operators that move rows into a table of another database, by COPY and exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_dblink.core.server.side import Side
from airflow_dblink.core.streams.pace import Pace
from airflow_dblink.core.transfer.plan import Mode, Spec
from airflow_dblink.core.transfer.run import prepare, run
from airflow_dblink.operators.common.once import ExactlyOnceOperator
from airflow_dblink.operators.common.pace import hold_before_work
from airflow_dblink.operators.common.progress import Progress

if TYPE_CHECKING:
    from airflow.sdk import Context


class MovingOperator(ExactlyOnceOperator):
    """Base of the operators that move rows by COPY; not one itself.

    :param mode: ``append``, ``replace``, ``upsert``, ``create`` or ``swap``. (templated)
    :param allow_empty_source: let an empty source empty the destination in modes ``replace`` and
        ``swap``. (templated)
    """

    def __init__(
        self, *, mode: Mode = "append", allow_empty_source: bool | str = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self.allow_empty_source = allow_empty_source

    def _move(
        self,
        context: Context,
        source_conn_id: str,
        destination_conn_id: str,
        spec: Spec,
        pace: Pace | None = None,
    ) -> dict[str, Any]:
        """Move the rows, once across all tries and no faster than *pace* allows, and return the counts."""
        with self._hook(source_conn_id) as source_hook, self._hook(destination_conn_id) as destination_hook:
            destination = Side(destination_hook.link().connection, destination_conn_id)
            once = self._once(context, destination.connection, destination.conn_id)
            if (result := self._recall(context, destination_hook, once)) is not None:
                self.log.info("An earlier try has committed: nothing is moved. %s", result)
                once.finish(result)
                return result
            if pace is not None:
                hold_before_work(pace, destination)
            source = Side(source_hook.link().connection, source_conn_id)
            settings = self._settings(destination.connection, destination.conn_id)
            source_settings = self._settings(source.connection, source.conn_id)
            work = prepare(source, destination, spec, source_settings, settings)
            self.log.info(
                "%s -> %s.%s: %s columns, %s, mode %s",
                source_conn_id,
                destination_conn_id,
                spec.destination_table,
                len(work.pairs),
                work.format,
                spec.mode,
            )
            progress = Progress(self.log.info, pace)
            paused_s = pace.paused_s if pace else 0.0
            facts = self._facts(source)
            result = run(source, destination, work, once, settings, progress.report, pace, facts)
            paused_s = (pace.paused_s if pace else 0.0) - paused_s
            progress.say("Moved", result["rows"], result["bytes"], result["seconds"] - paused_s)
            self._check()
            once.finish(result)
            return result

    def _facts(self, source: Side) -> Mapping[str, Any]:
        """Return facts of the source's open transaction, for the result."""
        return {}
