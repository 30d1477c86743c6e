"""Events as a queue of ``MessageQueueTrigger(scheme="dblink", ...)``."""

from __future__ import annotations

from airflow.providers.common.messaging.providers.base_provider import BaseMessageQueueProvider

from airflow_dblink.triggers.events import DblinkEventTrigger


class DblinkMessageQueueProvider(BaseMessageQueueProvider):
    """Make ``MessageQueueTrigger(scheme="dblink", ...)`` a :class:`DblinkEventTrigger`.

    It needs the provider ``apache-airflow-providers-common-messaging``.
    """

    scheme = "dblink"

    def trigger_class(self) -> type[DblinkEventTrigger]:
        """Return the class of the trigger."""
        return DblinkEventTrigger
