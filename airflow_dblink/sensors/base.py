"""The base of our sensors: they poke once, wait as their mode says, and fail in the same way in all modes."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import BaseSensorOperator
from airflow.sdk.bases.sensor import PokeReturnValue
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from airflow_dblink.hooks.dblink import DblinkHook
from airflow_dblink.triggers.base import DblinkBaseTrigger

if TYPE_CHECKING:
    from airflow.sdk import Context


class DblinkBaseSensor(BaseSensorOperator):
    """Base of the sensors that wait for something in a database; not one itself.

    A subclass checks its event in :meth:`poke`, and raises :attr:`failure` if it will never come.

    :param deferrable: wait in the triggerer, after one poke; by default Airflow's
        ``[operators] default_deferrable``.
    :param cancel_on_kill: cancel the awaited work when a user kills the deferred sensor, marks or clears it.
    :param password_required: dblink's credential rule, ``None``: the connection's setting.
    """

    #: No retry of the sensor helps; skipped by ``soft_fail`` and ``never_fail``.
    failure: ClassVar[type[AirflowFailException]] = AirflowFailException

    def __init__(
        self,
        *,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        cancel_on_kill: bool = False,
        password_required: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.deferrable = deferrable
        self.cancel_on_kill = cancel_on_kill
        self.password_required = password_required

    @abstractmethod
    def poke(self, context: Context) -> PokeReturnValue:
        """Return whether the awaited event has come.

        :raises AirflowFailException: :attr:`failure`, if it never will.
        """

    @abstractmethod
    def _trigger(self) -> DblinkBaseTrigger:
        """Return the trigger that waits; its event's ``state`` is ``error`` if waiting can't help."""

    def execute(self, context: Context) -> Any:
        """Poke once, then wait as the mode says."""
        if not self.deferrable:
            return super().execute(context)
        return self._look_or_defer(context, time.time() + self.timeout)

    def execute_complete(self, context: Context, event: Mapping[str, Any], until: float) -> Any:
        """Go on after the triggerer's event, and poke again."""
        if event["state"] == "error":
            raise self.failure(str(event.get("message")))
        return self._look_or_defer(context, until)

    def _look_or_defer(self, context: Context, until: float) -> Any:
        try:
            done = self.poke(context)
        except self.failure as error:  # as the base class does in the other modes
            if self.soft_fail or self.never_fail:
                why = "soft_fail" if self.soft_fail else "never_fail"
                raise AirflowSkipException(f"Skipping due to {why} is set to True.") from error
            raise
        if done:
            return done.xcom_value
        self.defer(
            trigger=self._trigger(),
            method_name="execute_complete",
            kwargs={"until": until},
            timeout=timedelta(seconds=max(until - time.time(), 0.0)),
        )

    def _hook(self, conn_id: str) -> DblinkHook:
        return DblinkHook(dblink_conn_id=conn_id, password_required=self.password_required)
