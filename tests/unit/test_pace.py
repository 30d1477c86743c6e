"""When a pace lets data move, on a clock that only the test moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from airflow_dblink.core.streams.pace import Pace, Pause
from airflow_dblink.operators.common.progress import Progress, duration

MB = 1_000_000


class Clock:
    """A clock; waiting moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        assert 0 < seconds <= 0.1
        self.now += seconds


class Answers(Pause):
    """A pause whose answers the test has written down."""

    def __init__(self, clock: Clock, *answers: bool) -> None:
        super().__init__("SELECT true", "monitor", self._unused, every_s=5)
        self.clock, self.answers, self.asked = clock, list(answers), list[float]()

    def _unused(self) -> Any:
        raise AssertionError

    def is_wanted(self) -> bool:
        self.asked.append(self.clock() - 1000)
        return self.answers.pop(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_data_moves_as_fast_as_allowed_and_no_faster(clock: Clock) -> None:
    pace = Pace(2.0, clock=clock)
    for _ in range(40):
        pace.hold(MB // 4, clock.wait)
    assert clock.now - 1000 == pytest.approx(39 * 0.125)


def test_a_slow_stream_catches_up_by_one_second_at_most(clock: Clock) -> None:
    pace = Pace(1.0, clock=clock)
    pace.hold(MB, clock.wait)
    clock.now += 3600
    resumed = clock.now
    for _ in range(5):
        pace.hold(MB, clock.wait)
    assert clock.now - resumed == pytest.approx(3)


def test_the_first_question_comes_before_the_first_byte(clock: Clock) -> None:
    pause = Answers(clock, True, True, False)
    pace = Pace(pause=pause, clock=clock)
    pace.hold(MB, clock.wait)
    assert pause.asked == pytest.approx([0, 5, 10])
    assert pace.paused_s == pytest.approx(10)


def test_questions_are_as_far_apart_as_the_interval_says(clock: Clock) -> None:
    pause = Answers(clock, False, False, False)
    pace = Pace(1.0, pause, clock)
    for _ in range(12):
        pace.hold(MB, clock.wait)
    assert pause.asked == pytest.approx([0, 5, 10], abs=0.2)
    assert pace.paused_s == 0


def test_what_a_wait_raises_ends_the_pause(clock: Clock) -> None:
    def killed(_: float) -> None:
        clock.now += 3
        raise InterruptedError

    pace = Pace(pause=Answers(clock, True), clock=clock)
    with pytest.raises(InterruptedError):
        pace.hold(MB, killed)
    assert pace.paused_s == pytest.approx(3)


# -- what the log says


@pytest.fixture
def said(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("time.monotonic", clock)
    return []


def note(said: list[str]) -> Callable[..., None]:
    return lambda text, *values: said.append(text % values)


def test_progress_says_share_and_time_left_but_never_that_all_is_there(clock: Clock, said: list[str]) -> None:
    progress = Progress(note(said))
    for second in range(0, 31, 5):
        clock.now = 1000.0 + second
        progress.report(second * 1000, second * MB, 30_000)
    assert said[0] == "So far: 5,000 rows, 5.0 MB, 1.0 MB/s, about 16% of 30,000, 25 s left"
    assert said[-1] == "So far: 30,000 rows, 30.0 MB, 1.0 MB/s, about 99% of 30,000, 0 s left"
    clock.now += 5
    progress.report(31_000, 31 * MB, 30_000)
    assert said[-1].endswith(" MB/s, more than the 30,000 that were estimated")
    assert not [line for line in said if "100%" in line]


def test_progress_without_an_estimate_says_no_share(clock: Clock, said: list[str]) -> None:
    progress = Progress(note(said))
    progress.report(0, 0, None)
    clock.now += 5
    progress.report(1000, 10 * MB, None)
    assert said == ["So far: 1,000 rows, 10.0 MB, 2.0 MB/s"]


def test_a_pause_counts_neither_for_the_speed_nor_for_the_time_left(clock: Clock, said: list[str]) -> None:
    pace = Pace(clock=clock)
    progress = Progress(note(said), pace)
    progress.report(0, 0, 2000)
    clock.now += 110
    pace.paused_s = 100
    progress.report(1000, 10 * MB, 2000)
    assert said == ["So far: 1,000 rows, 10.0 MB, 1.0 MB/s, about 50% of 2,000, 10 s left"]


def test_time_before_the_first_row_does_not_count(clock: Clock, said: list[str]) -> None:
    progress = Progress(note(said))
    clock.now += 600  # a lock
    progress.report(100, MB, None)
    clock.now += 5
    progress.report(600, 6 * MB, None)
    assert said == ["So far: 600 rows, 6.0 MB, 1.0 MB/s"]


def test_progress_speaks_less_often_the_longer_it_takes(clock: Clock, said: list[str]) -> None:
    progress = Progress(note(said))
    counts = []
    for second in range(7201):
        clock.now = 1000.0 + second
        progress.report(second, second * MB, None)
        counts.append(len(said))
    assert counts[60] == 12
    assert counts[7200] - counts[3600] == 60


def test_progress_begins_anew_with_each_stream(clock: Clock, said: list[str]) -> None:
    progress = Progress(note(said))
    for _ in range(2):
        progress.report(0, 0, None)
        clock.now += 5
        progress.report(1000, 5 * MB, None)
    assert said == ["So far: 1,000 rows, 5.0 MB, 1.0 MB/s"] * 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (180, "3 min"), (7199, "120 min"), (12_000, "3 h 20 min")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
