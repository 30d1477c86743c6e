"""What a sync has found and done, and how it is told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_dblink.core.errors import UsageError
from airflow_dblink.core.sync.comparison import Comparison
from airflow_dblink.core.sync.spec import DELETE, INSERT, UPDATE, Spec
from airflow_dblink.core.sync.work import Work


@dataclass(frozen=True)
class Plan:
    """What differs.

    :ivar missing: rows that only the source has.
    :ivar changed: rows that both have, with other values.
    :ivar extra: rows that only the destination has.
    :ivar digest: of all keys, and of the rows' contents on both sides.
    :ivar first_keys: some keys of each kind, as text, of which the first 100 characters.
    """

    missing: int = 0
    changed: int = 0
    extra: int = 0
    digest: str = ""
    first_keys: Mapping[str, list[list[str]]] = field(default_factory=dict)

    def done(self, operations: str) -> int:
        """Return how many rows *operations* will touch."""
        given = {INSERT: self.missing, UPDATE: self.changed, DELETE: self.extra}
        return sum(given[operation] for operation in operations)


@dataclass
class Outcome:
    """What was found and done so far.

    :ivar dry_run: whether nothing is to be changed; then guards don't stop it.
    :ivar refused: what the guards say of it.
    :ivar size: bytes that came to the client.
    :ivar comparison: what the changes go by; ``None`` where all rows are fetched, after a look at groups or
        without one.
    :ivar renewed: rows that are inserted anew, so that others can take their values meanwhile.
    :ivar displaced: rows that are deleted to make way for others, for good.
    """

    dry_run: bool = False
    refused: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    size: int = 0
    comparison: Comparison | None = None
    groups: int = 0
    groups_differing: int = 0
    method: str = "difference"
    source_rows: int | None = None
    destination_rows: int | None = None
    plan: Plan = field(default_factory=Plan)
    renewed: int = 0
    displaced: int = 0
    done: dict[str, int] = field(default_factory=dict)
    watermark: str | None = None
    xid: str | None = None

    def refuse(self, error: UsageError) -> None:
        """Raise *error*, which a guard has found; a dry run only notes it.

        :raises UsageError: *error*.
        """
        if not self.dry_run:
            raise error
        self.refused.append(error.message)

    def expected(self, spec: Spec) -> dict[str, int]:
        """Return how many rows the plan, and what makes way for it, inserts, updates and deletes."""
        plan = self.plan
        return {
            "inserted": plan.missing * spec.insert + self.renewed,
            "updated": plan.changed * spec.update - self.renewed,
            "deleted": plan.extra * spec.delete + self.renewed + self.displaced,
        }

    def result(self, work: Work) -> dict[str, Any]:
        """Return it as JSON has it: the XCom of the operator."""
        plan = self.plan
        found: dict[str, Any] = {
            "method": self.method,
            "source_rows": self.source_rows,
            "destination_rows": self.destination_rows,
            "groups": self.groups,
            "groups_differing": self.groups_differing,
            "missing": plan.missing,
            "changed": plan.changed,
            "extra": plan.extra,
            **{name: self.done.get(name, 0) for name in ("inserted", "updated", "deleted")},
            "displaced": self.displaced,
            "first_keys": plan.first_keys,
            "bytes": self.size,
            "seconds": round(time.monotonic() - self.started, 3),
            "row_security": list(work.row_security),
            "xid": self.xid,
        }
        if self.dry_run:
            found["plan"] = {
                "seed": work.checksum.seed,
                "digest": plan.digest,
                "arguments": work.fingerprint,
            }
            found["refused"] = self.refused
        if work.spec.is_incremental:
            found["watermark"] = self.watermark
            found["watermark_type"] = work.watermark_type
        return found
