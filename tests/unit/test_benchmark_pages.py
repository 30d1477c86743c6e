"""The figures that docs/benchmarks.md and README show are written from the stored results, not by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.measure import BenchmarkError, Check, Outcome, Sample, Series, Table


@pytest.fixture
def copy(tmp_path: Path) -> report.Files:
    """Return a copy of the files of this checkout."""
    here, there = report.CHECKOUT, report.Files(tmp_path)
    for path, to in zip(_all(here), _all(there), strict=True):
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, to)
    return there


def _all(files: report.Files) -> list[Path]:
    return [files.results, files.page, files.readme]


def _texts(files: report.Files) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in _all(files)]


def test_page_and_readme_show_the_stored_results(copy: report.Files) -> None:
    before = _texts(copy)
    copy.page.write_text("edited by hand", encoding="utf-8")
    report.store(report.load(copy), copy)
    assert _texts(copy) == before


def test_the_command_writes_without_a_run(copy: report.Files, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _texts(copy)
    copy.page.unlink()
    monkeypatch.setattr("sys.argv", ["benchmarks", "--write"])
    assert main(copy) == 0
    assert _texts(copy) == before


def test_one_benchmark_is_merged_into_the_others(copy: report.Files) -> None:
    old = report.load(copy)
    table = Table(old.tables[0].title, ["way", "seconds"], [["a | b", "1.25"]], ["One note.", "Another."])
    check = Check(old.checks[1].what, "9.99", "<= 1", met=False)
    added = Check("a target of its own", "1", "1", met=True)
    series = Series("a way", [Sample(0.12345), Sample(2.0)])
    short = Table("", ["rows", "time"], [["a way", "3 s"]])
    new = report.collected(
        [Outcome([table], [check, added], {"new rounds": [series]}, short)], old.about, old.repeat
    )

    report.store(report.merged(old, new), copy)

    kept, (_, page, readme) = report.load(copy), _texts(copy)
    assert [one.title for one in kept.tables] == [one.title for one in old.tables]
    assert kept.tables[1:] == old.tables[1:]
    assert [one.what for one in kept.checks] == [*(one.what for one in old.checks), "a target of its own"]
    assert kept.rounds == {**old.rounds, "new rounds": {"a way": [0.123, 2.0]}}
    assert (
        f"## {table.title}\n\n| way | seconds |\n|---|--:|\n| a \\| b | 1.25 |\n\nOne note. Another.\n"
    ) in page
    assert f"| {check.what} | 9.99 | <= 1 | **missed** |".replace("psql | psql", "psql \\| psql") in page
    assert page.endswith("| a target of its own | 1 | 1 | met |\n")
    assert "<!-- bench -->\n| rows | time |\n|---|--:|\n| a way | 3 s |\n<!-- /bench -->" in readme


def test_a_benchmark_without_a_short_table_leaves_readme_s(copy: report.Files) -> None:
    old = report.load(copy)
    merged = report.merged(old, report.collected([Outcome([], [])], old.about, old.repeat))
    assert merged.short == old.short


def test_figures_of_another_setup_are_not_merged(copy: report.Files) -> None:
    old = report.load(copy)
    with pytest.raises(BenchmarkError, match="another setup"):
        report.merged(old, replace(old, about="Another machine."))
    with pytest.raises(BenchmarkError, match="another setup"):
        report.merged(old, replace(old, repeat=old.repeat + 1))


@pytest.mark.parametrize("text", ["none", "<!-- bench -->", "<!-- /bench --> <!-- bench -->"])
def test_nothing_is_written_if_readme_has_no_place(copy: report.Files, text: str) -> None:
    results = report.load(copy)
    copy.readme.write_text(text, encoding="utf-8")
    before = _texts(copy)
    with pytest.raises(BenchmarkError, match=r"README\.md needs one <!-- bench -->"):
        report.store(replace(results, tables=[]), copy)
    assert _texts(copy) == before


def test_missing_results_are_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"results\.json is missing"):
        report.load(report.Files(tmp_path))


def test_readme_is_short() -> None:
    assert len(report.CHECKOUT.readme.read_text(encoding="utf-8").splitlines()) <= 200
