"""Sync: the operator beside a full copy, and beside programs that find what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import sync_curve, sync_memory, sync_peers
from benchmarks.child import child
from benchmarks.lab import Lab
from benchmarks.measure import Check, Outcome, Series, Table, Way, interleaved, number
from benchmarks.sync_peers import DATA_DIFF, PG_COMPARATOR, RELADIFF, Peer
from benchmarks.sync_tables import Difference, Tables, filled
from benchmarks.sync_ways import OPERATOR, Said, by_sync, full_copy
from benchmarks.transfer import PSQL

EQUAL = Difference("equal", "nothing differs", 0)
SCATTERED = Difference("scattered", "0.1 % differ, scattered", 0.001)
CLUSTERED = Difference("clustered", "0.1 % differ, clustered", 0.001, clustered=True)
TEXT_KEY = Difference("text_key", "0.1 % differ, scattered, key is a text", 0.001, key_type="text")
_WITH_TARGETS = (EQUAL, SCATTERED, CLUSTERED)

_TIME_TARGETS = {EQUAL: 0.5, SCATTERED: 0.7, CLUSTERED: 0.7}
_SIZE_TARGETS = {EQUAL: 0.015, SCATTERED: 0.04, CLUSTERED: 0.04}
_RELADIFF_TARGETS = {EQUAL: 3.0, SCATTERED: 10.0, CLUSTERED: 3.0}
_PEER_RUNS = 2  # they are slow


@dataclass(frozen=True)
class _Results:
    """What was measured.

    :ivar series: the operator's, by title of the difference, and psql's.
    :ivar peers: by name, then by title of the difference; nothing for one that isn't here.
    """

    every: Mapping[Difference, Tables]
    series: Mapping[str, Series]
    said: Said
    peers: Mapping[str, Mapping[str, Series]]
    programs: Sequence[Peer]


def run(lab: Lab, rows: int, repeat: int, *, large: bool, say: Callable[[str], None]) -> Outcome:
    """Sync tables that differ in various ways; all rows are compared after each.

    :param large: also ten times the rows, for the memory.
    """
    say(f"Sync: {rows:,} rows")
    programs = sync_peers.peers(say)
    with ExitStack() as stack:
        every = {d: stack.enter_context(filled(lab, d, rows)) for d in (*_WITH_TARGETS, TEXT_KEY)}
        said = Said()
        with child(lab) as airflow, full_copy(lab, every[EQUAL]) as copy:
            ways: dict[str, Way] = {PSQL: copy}
            ways |= {d.title: by_sync(airflow, tables, d.title, said) for d, tables in every.items()}
            series = interleaved(ways, repeat, say)
        found = _find(lab, programs, [every[d] for d in _WITH_TARGETS], say)
        results = _Results(every, series, said, found, programs)
    with child(lab) as airflow:
        curve = sync_curve.run(lab, airflow, rows, repeat, say)
    memory = sync_memory.run(lab, rows, large=large, say=say)
    samples = {"Sync": [*series.values()]}
    samples |= {f"Finding what differs, {name}": [*one.values()] for name, one in found.items()}
    return Outcome(
        [_table(results, rows), _peer_table(results, rows), *curve.tables, *memory.tables],
        [*_checks(results), *_peer_checks(results), *curve.checks, *memory.checks],
        {**samples, **curve.samples, **memory.samples},
    )


def _find(
    lab: Lab, programs: Sequence[Peer], every: Sequence[Tables], say: Callable[[str], None]
) -> dict[str, dict[str, Series]]:
    """Let each program find what differs, some times."""
    sync_peers.prepare(lab)
    found: dict[str, dict[str, Series]] = {}
    for tables in every:
        tables.restore()
        title = tables.difference.title
        for peer in programs:
            if peer.missing is None:
                series = Series(title, [peer.find(tables) for _ in range(_PEER_RUNS)])
                found.setdefault(peer.name, {})[title] = series
                say(f"  {peer.name}, {title}: {series.seconds:.2f} s")
    return found


# -- what it says


def _table(results: _Results, rows: int) -> Table:
    lines = []
    for difference, tables in results.every.items():
        series = results.series[difference.title]
        size = results.said.sizes[difference.title]
        lines.append(
            [
                difference.title,
                f"{series.ratio_to(results.series[PSQL]):.2f} ({number(series.seconds)})",
                number(size / 1e6, 1),
                f"{size / tables.size:.1%}",
                number(series.cpu_s),
                number(series.rss_mb, 0),
            ]
        )
    full, size = results.series[PSQL], results.every[EQUAL].size
    lines.append(
        [PSQL, f"1.00 ({number(full.seconds)})", number(size / 1e6, 1), "100%", number(full.cpu_s), "-"]
    )
    return Table(
        f"Sync of {rows:,} mixed rows: compare, apply and verify",
        [
            OPERATOR,
            "time relative to a full copy",
            "MB to the client",
            "of the table's",
            "client CPU, s",
            "memory, MB",
        ],
        lines,
        [
            "Seconds in brackets; connecting is included. One third of the differing rows is updated, one"
            " inserted and one deleted. The full copy goes into an empty table with its key. Before each run"
            " the destination gets its old rows again, VACUUM and a checkpoint. After each run the texts of"
            " both tables' rows are compared.",
        ],
    )


def _peer_table(results: _Results, rows: int) -> Table:
    full = results.series[PSQL]
    own = [results.series[d.title] for d in _WITH_TARGETS]
    lines = [[f"{OPERATOR} (applies, verifies)", *(_cell(s, full) for s in own), number(own[1].cpu_s)]]
    missing = []
    for peer in results.programs:
        name = f"{peer.name} -j2" if peer.name in (RELADIFF, DATA_DIFF) else peer.name
        if peer.missing is None:
            found = [results.peers[peer.name][d.title] for d in _WITH_TARGETS]
            lines.append([name, *(_cell(s, full) for s in found), number(found[1].cpu_s)])
        else:
            lines.append([name, *["could not be installed"] * len(own), "-"])
            missing.append(f"{peer.name} could not be installed: {peer.missing}.")
    return Table(
        f"Finding what differs in {rows:,} mixed rows",
        [
            "time relative to a full copy by `psql | psql`",
            *(d.title for d in _WITH_TARGETS),
            "client CPU, s, scattered",
        ],
        lines,
        [
            "Seconds in brackets. The other programs print the difference and apply nothing. Their times are"
            f" medians of {_PEER_RUNS} runs of whole processes, after the rounds. data-diff fails without a"
            " scale for the numeric column, so it reads a view that gives one. pg_comparator's C code is"
            " built for one version, so it calls PostgreSQL's own hash of the text instead.",
            *missing,
        ],
    )


def _cell(series: Series, full: Series) -> str:
    return f"{series.seconds / full.seconds:.2f} ({number(series.seconds, 1)})"


def _checks(results: _Results) -> list[Check]:
    checks = []
    for difference in _WITH_TARGETS:
        ratio = results.series[difference.title].ratio_to(results.series[PSQL])
        target = _TIME_TARGETS[difference]
        what = f"sync, {difference.title}: time to a full copy by `psql | psql`"
        checks.append(Check(what, f"{ratio:.2f}", f"<= {target:g}", ratio <= target))
    for difference in _WITH_TARGETS:
        share = results.said.sizes[difference.title] / results.every[difference].size
        target = _SIZE_TARGETS[difference]
        what = f"sync, {difference.title}: bytes to the client, of the table's"
        checks.append(Check(what, f"{share:.1%}", f"<= {target:.1%}", share <= target))
    return checks


def _peer_checks(results: _Results) -> list[Check]:
    checks = []
    for difference in _WITH_TARGETS:
        target = _RELADIFF_TARGETS[difference]
        what = f"sync, {difference.title}: times faster than {RELADIFF}"
        if RELADIFF in results.peers:
            series = results.peers[RELADIFF][difference.title]
            faster = series.seconds / results.series[difference.title].seconds
            checks.append(Check(what, f"{faster:.1f}", f">= {target:g}", faster >= target))
        else:
            checks.append(Check(what, "not installed", f">= {target:g}", met=False))
    here = [name for name in (RELADIFF, DATA_DIFF, PG_COMPARATOR) if name in results.peers]
    what = "sync: programs to compare with that could be installed"
    checks.append(Check(what, ", ".join(here) or "none", "all 3", len(here) == len(results.programs)))
    return checks
