"""Samples, their medians, and what a benchmark says in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median


class BenchmarkError(Exception):
    """Something failed, or rows did not arrive as they were."""


@dataclass(frozen=True)
class Sample:
    """One measured run.

    :ivar seconds: wall time.
    :ivar cpu_s: CPU time of the client, not of the servers; ``None`` where there is no client.
    :ivar rss_mb: how much the client's memory peaked above its import baseline.
    """

    seconds: float
    cpu_s: float | None = None
    rss_mb: float | None = None


@dataclass
class Series:
    """The samples of one way, one per round, the discarded round left out."""

    name: str
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Median of the wall times."""
        return median(sample.seconds for sample in self.samples)

    @property
    def cpu_s(self) -> float | None:
        """Median of the client's CPU times."""
        known = [sample.cpu_s for sample in self.samples if sample.cpu_s is not None]
        return median(known) if known else None

    @property
    def rss_mb(self) -> float | None:
        """Highest of the client's memory peaks."""
        return max((sample.rss_mb for sample in self.samples if sample.rss_mb is not None), default=None)

    def ratio_to(self, other: Series) -> float:
        """Return the median of the ratios round by round: what slows a whole round cancels out."""
        return median(
            mine.seconds / theirs.seconds for mine, theirs in zip(self.samples, other.samples, strict=True)
        )


@dataclass(frozen=True)
class Check:
    """One figure beside its target."""

    what: str
    figure: str
    target: str
    met: bool


@dataclass(frozen=True)
class Table:
    """A table as text; the first column is a name, the others are numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """What one benchmark found.

    :ivar samples: every wall time, by title and way, for the stored results.
    :ivar short: the table that README shows, from one benchmark.
    """

    tables: Sequence[Table]
    checks: Sequence[Check]
    samples: Mapping[str, Sequence[Series]] = field(default_factory=dict)
    short: Table | None = None


Way = Callable[[], Sample]


def interleaved(ways: Mapping[str, Way], repeat: int, say: Callable[[str], None]) -> dict[str, Series]:
    """Run all *ways* in turn, ``repeat`` times and once more before: that first round is discarded."""
    series = {name: Series(name) for name in ways}
    for turn in range(repeat + 1):
        line = []
        for name, way in ways.items():
            sample = way()
            if turn:
                series[name].samples.append(sample)
            line.append(f"{name} {sample.seconds:.3f}")
        say(f"  round {turn or 'discarded'}: " + ", ".join(line) + " s")
    return series


def number(value: float | None, digits: int = 2) -> str:
    """Return *value* for a table."""
    return "-" if value is None else f"{value:,.{digits}f}"
