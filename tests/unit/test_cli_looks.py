"""What the commands that look are made of: values in a line, the pace of workers, how far a log was read."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from asyncexp.cli import cells, mend
from asyncexp.cli.codes import Refused
from asyncexp.cli.pace import Pace
from asyncexp.cli.tracebacks import summed
from asyncexp.store import lines
from asyncexp.store.lines import LogMark
from asyncexp.store.look import Overview
from asyncexp.store.workers import WorkerInfo

START = datetime(2024, 1, 1)

# ---------------------------------------------------------------------------------- values in a line


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "null"),
        (True, "true"),
        (0.1 + 0.2, "0.30000000000000004"),
        (START, "2024-01-01 00:00:00"),
        ({"a": ["ü", None]}, '{"a": ["ü", null]}'),
        ("a\tb\r\nc", "a\\tb\\r\\nc"),
        ("\x1b[2J\x9b\x00", "\\x1b[2J\\x9b\\x00"),
        ("\u202eright to left\u2028", "\\u202eright to left\\u2028"),
        ("[red]🙂[/red]", "[red]🙂[/red]"),
    ],
)
def test_a_value_is_one_line_that_moves_no_cursor(value: Any, told: str) -> None:
    assert cells.one_line(value) == told
    assert cells.cell(value).plain == told


def test_a_text_of_several_lines_keeps_them() -> None:
    assert cells.in_lines("a\r\nb\x1b[1m\n\tc\rd") == "a\nb\\x1b[1m\n    c\\rd"


def test_named_values_are_what_where_takes() -> None:
    values = {"a": 1, "b": None, "c": "null", "d": "two words", "e": "", "f": "x=y", "g": "plain"}
    assert cells.named(values) == 'a=1 b=null c="null" d="two words" e="" f="x=y" g=plain'


@pytest.mark.parametrize(
    ("ids", "told"), [([7], ["7"]), ([3, 1, 2], ["1-3"]), ([1, 3, 4, 9], ["1", "3-4", "9"]), ([1, 2, 5], ["1-2", "5"])]
)
def test_ids_are_told_as_ranges(ids: list[int], told: list[str]) -> None:
    assert cells.ranges(ids) == told


def test_an_error_is_summed_up_by_its_exception_and_all_that_it_says() -> None:
    frames = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'
    assert summed(f"{frames}ValueError: one\ntwo\n") == "ValueError: one\ntwo"
    first = f"{frames}KeyError: 'first'\n\nDuring handling of the above exception, another exception occurred:\n\n"
    assert summed(f"{first}{frames}pkg.Late: at last") == "pkg.Late: at last"
    assert summed(f"{frames}KeyboardInterrupt") == "KeyboardInterrupt"
    assert summed("its worker died") == "its worker died"
    assert summed("") == "the function returned ERROR"


# ------------------------------------------------------------------------------------------- the pace


def _worker(number: int, seconds: float, ended: int, state: str = "live", role: str = "worker") -> WorkerInfo:
    """One that began at `START`; its last sign of life came so many seconds later."""
    facts: dict[str, Any] = dict.fromkeys(WorkerInfo.__slots__)
    facts |= {"id": number, "role": role, "state": state, "started": START, "running": 1}
    facts |= {"heartbeat": START + timedelta(seconds=seconds), "ended_done": ended, "ended_error": 0}
    return WorkerInfo(**facts)


def _overview(*workers: WorkerInfo, created: int = 90) -> Overview:
    counts = {"created": created, "running": 10 if created else 0, "done": 0, "error": 0, "paused": 0}
    return Overview(counts, workers, (), START, 0.1)


def test_a_worker_to_stop_is_named_whole_or_by_a_beginning_that_only_one_has() -> None:
    workers = [replace(_worker(number, 1, 0), name=name, machine="node") for number, name in ((11, "b"), (112, "12"))]
    workers.append(replace(_worker(123, 1, 0), name="c", machine="other"))
    called = {word: [each.id for each in mend.called(workers, word)] for word in ("11", "112", "12", "123", "node")}
    assert called == {"11": [11], "112": [112], "12": [112], "123": [123], "node": [11, 112]}
    for word in ("1", "", "7"):
        with pytest.raises(Refused):
            mend.called(workers, word)


def test_the_pace_of_one_look_is_that_of_the_live_workers_since_they_began() -> None:
    workers = (_worker(1, 100, 50), _worker(2, 100, 150), _worker(3, 100, 999, "lost"), _worker(4, 9, 9, "stopped"))
    pace = Pace(_overview(*workers, _worker(5, 100, 100, role="attached")))
    assert pace.rate == pytest.approx(2.0)
    assert pace.eta_seconds(None) == pytest.approx(50.0)


def test_where_nothing_ended_or_nothing_is_open_or_some_rows_count_no_time_is_told() -> None:
    assert Pace(_overview()).eta_seconds(None) is None
    assert Pace(_overview(_worker(1, 100, 0))).eta_seconds(None) is None
    assert Pace(_overview(_worker(1, 0, 0))).rate == 0.0
    assert Pace(_overview(_worker(1, 100, 50), created=0)).eta_seconds(None) is None
    assert Pace(_overview(_worker(1, 100, 50))).eta_seconds({"kind": "a"}) is None


def test_the_pace_of_several_looks_is_by_the_change_between_signs_of_life() -> None:
    pace = Pace(_overview(_worker(1, 100, 100)))
    pace.note(_overview(_worker(1, 100, 100)))
    assert pace.rate == pytest.approx(1.0)  # no sign came between: as since it began
    pace.note(_overview(_worker(1, 115, 190), _worker(2, 10, 20)))
    assert pace.rate == pytest.approx(6.0 + 2.0)
    pace.note(_overview(_worker(1, 130, 190), _worker(2, 25, 50)))
    assert pace.rate == pytest.approx(3.0 + 2.0)


def test_where_nothing_can_be_expected_of_a_moment_it_says_nothing() -> None:
    pace = Pace(_overview(_worker(1, 10_000, 10)))
    pace.note(_overview(_worker(1, 10_060, 10)))
    assert pace.rate == pytest.approx(10 / 10_060)
    busy = Pace(_overview(_worker(1, 100, 100)))
    busy.note(_overview(_worker(1, 160, 100)))
    assert busy.rate == 0.0


def test_the_pace_forgets_what_is_long_past() -> None:
    pace = Pace(_overview(_worker(1, 100, 0)))
    for second in range(110, 1_110, 10):
        pace.note(_overview(_worker(1, second, (second - 100) * 2)))
    for second in range(1_110, 1_310, 10):
        pace.note(_overview(_worker(1, second, 2_000 + (second - 1_100))))
    assert pace.rate == pytest.approx(1.0)


# ------------------------------------------------------------------------------- how far a log was read

BEGIN = LogMark(0, 0, frozenset(), ())


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds; to be changed."""
    clock = [0.0]
    monkeypatch.setattr("asyncexp.store.lines.time.monotonic", lambda: clock[0])
    return clock


def test_without_gaps_nothing_is_remembered_but_the_last_line(at: list[float]) -> None:
    assert lines._moved(BEGIN, range(1, 5_000)) == LogMark(4_999, 4_999, frozenset(), ())


def test_a_gap_is_remembered_for_a_minute(at: list[float]) -> None:
    mark = lines._moved(BEGIN, [1, 2, 4, 5])
    assert (mark.floor, set(mark.seen), mark.top) == (2, {4, 5}, 5)
    at[0] = 30.0
    mark = lines._moved(mark, [6, 9])
    assert (mark.floor, set(mark.seen), mark.top) == (2, {4, 5, 6, 9}, 9)
    at[0] = 61.0
    mark = lines._moved(mark, [])
    assert (mark.floor, set(mark.seen)) == (6, {9})
    mark = lines._moved(mark, [7])
    assert (mark.floor, set(mark.seen)) == (6, {7, 9})
    at[0] = 91.0
    assert lines._moved(mark, []) == LogMark(9, 9, frozenset(), ())
