"""The difference that a sync has found, its changes, and its result for XCom."""

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
    """The difference between source and destination.

    :ivar missing: rows that only the source has.
    :ivar changed: rows that both have, with other values.
    :ivar extra: rows that only the destination has.
    :ivar digest: hash of all keys in the difference, and of their rows on both sides.
    :ivar first_keys: some keys of each kind, as text of at most 100 characters.
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
    """The state and numbers of a sync so far.

    :ivar dry_run: whether nothing may be changed; then guards don't stop the sync.
    :ivar refused: the guards' refusals.
    :ivar size: bytes that came to the client.
    :ivar comparison: the comparison that the changes are based on; ``None`` if all rows are fetched, whether
        or not groups were compared before.
    :ivar renewed: rows that are deleted and inserted again, so that others can take their values meanwhile.
    :ivar displaced: rows that are deleted for good to make way for others.
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

    @property
    def is_by_groups(self) -> bool:
        """Whether only groups that differ are looked into: they were compared, and few enough differ."""
        return self.comparison is not None

    @property
    def is_equal(self) -> bool:
        """Whether groups were compared, and none differs."""
        return self.comparison is not None and not self.comparison.differing

    def refuse(self, error: UsageError) -> None:
        """Raise a guard's *error*; a dry run only notes it.

        :raises UsageError: *error*.
        """
        if not self.dry_run:
            raise error
        self.refused.append(error.message)

    def expected(self, spec: Spec) -> dict[str, int]:
        """Return how many rows are inserted, updated and deleted, those that make way included."""
        plan = self.plan
        return {
            "inserted": plan.missing * spec.insert + self.renewed,
            "updated": plan.changed * spec.update - self.renewed,
            "deleted": plan.extra * spec.delete + self.renewed + self.displaced,
        }

    def result(self, work: Work) -> dict[str, Any]:
        """Return the operator's result, as values for JSON."""
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
