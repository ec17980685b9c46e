"""The progress bar and its plain lines; the bar on real pseudo-terminals."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from asyncexp.experiment import Summary
from asyncexp.progress import Pace, rate_text, reporter, span_text

ROOT = Path(__file__).parents[2]
ON_A_TERMINAL = """
import logging, os, sys, threading
from asyncexp.experiment import Summary
from asyncexp.progress import reporter
logging.basicConfig(format="%(message)s", level="INFO")
before = sys.stdout, sys.stderr, set(threading.enumerate())
"""
"""What every script on a terminal begins with."""
LEAVES_NOTHING = """
assert (sys.stdout, sys.stderr, set(threading.enumerate())) == before
assert logging.root.handlers[0].stream is sys.stderr
print("left clean")
"""


class Clock:
    """A clock that goes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """As much of a terminal as a bar needs: what would be seen at the end."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.lines = [""]
        self.row = self.column = 0
        self.cursor = True

    def feed(self, text: str) -> Screen:
        for move, character in re.findall(r"\x1b\[([?\d;]*[A-Za-z])|(.)", text, re.DOTALL):
            if move:
                self._control(move)
            else:
                self._put(character)
        return self

    def _control(self, move: str) -> None:
        if move == "2K":
            self.lines[self.row] = ""
        elif move.endswith("A"):
            self.row -= int(move[:-1] or 1)
        elif move in ("?25l", "?25h"):
            self.cursor = move == "?25h"
        else:
            assert move.endswith("m"), f"a control nobody expects: {move}"

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_line()
        else:
            if self.column == self.columns:
                self.column = 0
                self._next_line()
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def _next_line(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row + 1 - len(self.lines))


def on_terminal(script: str, columns: int = 80, **environment: str) -> str:
    """All that a script writes to a pseudo-terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL + script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**kept, "TERM": "xterm-256color", **environment},
        cwd=ROOT,
    )
    os.close(theirs)
    text = b"".join(_read_all(ours)).decode()
    os.close(ours)
    assert child.wait(30) == 0, text
    return text


def _read_all(end: int) -> Iterator[bytes]:
    while True:
        try:
            piece = os.read(end, 65536)
        except OSError:  # how Linux says that nobody holds the other end any more
            return
        if not piece:
            return
        yield piece


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_bar_fits_its_terminal_and_prints_stay_above(columns: int) -> None:
    text = on_terminal(
        """
with reporter(None) as tell:
    tell(Summary(done=61, error=2, running=8, retried=3, left=1234, seconds=12.0))
    print("a [red]word[/red] " + "long " * 60)
    logging.getLogger("some.module").info("logged meanwhile")
    print("half", end="")
    print(" whole")
    tell(Summary(done=98765, error=2, left=0, seconds=100.0))
"""
        + LEAVES_NOTHING,
        columns,
    )
    screen = Screen(columns).feed(text)
    seen = "\n".join(screen.lines)
    whole = "".join(line.ljust(columns) for line in screen.lines)
    assert "a [red]word[/red] " + "long " * 60 in whole
    assert seen.index("logged meanwhile") < seen.index("half whole") < seen.index("left clean")
    bars = [line for line in screen.lines if "98765 done" in line]
    assert len(bars) == 1, seen
    assert "1234 left" not in seen
    assert screen.lines.index(bars[0]) == screen.lines.index("left clean") - 1
    assert screen.cursor
    if columns >= 80:
        assert bars[0].endswith("98765 done  2 failed  0 left  988/s  in 1:40")
        assert bars[0].startswith("━━━━━━━━")


def test_largest_counts_fit_eighty_columns() -> None:
    text = on_terminal(
        """
with reporter(True) as tell:
    tell(Summary(done=345678, error=100000, running=1000, lost=12, left=1000000, seconds=36000.5))
"""
    )
    (bar,) = (line for line in Screen(80).feed(text).lines if "━" in line)
    assert bar.endswith("345678 done  100000 failed  1000000 left  12.4/s  in 10:00:00")


def test_the_bar_moves_while_nothing_is_reported() -> None:
    text = on_terminal(
        """
import asyncexp.progress as module
drawn = threading.Semaphore(0)
line = module.Bar.line
module.Bar.line = lambda bar: (drawn.release(), line(bar))[1]
with reporter(True) as tell:
    tell(Summary(done=1, left=9))
    for _ in range(4):
        assert drawn.acquire(timeout=10)
"""
    )
    assert text.count("1 done  0 failed  9 left") >= 3


def test_an_exception_passes_and_leaves_nothing() -> None:
    text = on_terminal(
        """
try:
    with reporter(True) as tell:
        tell(Summary(done=1, left=9))
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("passed on")
"""
        + LEAVES_NOTHING
    )
    screen = Screen(80).feed(text)
    assert screen.cursor
    assert [line for line in screen.lines if line][-2:] == ["passed on", "left clean"]


def test_an_empty_run_leaves_no_bar() -> None:
    text = on_terminal("with reporter(True) as tell:\n    tell(Summary(left=0, seconds=0.1))\n")
    assert not any(Screen(80).feed(text).lines)


def test_a_dumb_terminal_gets_lines() -> None:
    text = on_terminal("with reporter(None) as tell:\n    tell(Summary(done=3, left=0, seconds=2.0))\n", TERM="dumb")
    assert text == "progress: 3 done, 0 failed, 0 left, 1.5/s, in 0:02\r\n"


def test_no_colour_means_none() -> None:
    script = "with reporter(None) as tell:\n    tell(Summary(done=3, error=1, left=5))\n"
    assert re.search(r"\x1b\[\d[\d;]*m", on_terminal(script))
    assert not re.search(r"\x1b\[\d[\d;]*m", on_terminal(script, NO_COLOR="1"))


def test_a_second_bar_becomes_lines_above_the_first() -> None:
    text = on_terminal(
        """
with reporter(True) as first:
    first(Summary(done=1, left=9))
    with reporter(None) as second:
        second(Summary(done=5, left=0, seconds=1.0))
with reporter(True) as third:
    assert type(third) is type(first)
"""
        + LEAVES_NOTHING
    )
    lines = Screen(80).feed(text).lines
    assert lines[0] == "progress: 5 done, 0 failed, 0 left, 5.0/s, in 0:01"
    assert "1 done  0 failed  9 left" in lines[1]


def test_a_forked_child_prints_straight() -> None:
    text = on_terminal(
        """
with reporter(True) as tell:
    tell(Summary(done=1, left=9))
    if not os.fork():
        assert (sys.stdout, sys.stderr) == before[:2]
        os.write(1, b"child prints straight")
        os._exit(0)
    assert os.wait()[1] == 0
"""
    )
    assert "child prints straight" in text


def test_output_sent_to_a_file_stays_there(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    text = on_terminal(
        f"""
sys.stdout = open({str(target)!r}, "w")
with reporter(None) as tell:
    print("for the file")
    tell(Summary(done=1, left=0, seconds=1.0))
sys.stdout.close()
"""
    )
    assert target.read_text() == "for the file\n"
    assert "for the file" not in text
    assert "1 done" in text


def test_a_terminal_that_is_gone_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    with reporter(None, stream=stream) as tell:
        assert tell is not None
        os.close(ours)
        tell(Summary(done=1, left=0))
    assert not [thread for thread in threading.enumerate() if "progress" in thread.name]
    with pytest.raises(OSError, match="Input/output"):
        stream.close()
    assert "progress is no longer shown" in caplog.text


def test_being_told_draws_nothing_itself() -> None:
    text = on_terminal(
        """
import asyncexp.progress as module
module.DRAWS_A_SECOND = 0.001
drawn, line = [], module.Bar.line
module.Bar.line = lambda bar: (drawn.append(1), line(bar))[1]
with reporter(True) as tell:
    for done in range(20_000):
        tell(Summary(done=done, left=9))
assert len(drawn) <= 3, len(drawn)
"""
    )
    assert "19999 done" in text


# ---- not on a terminal


def told(stream: io.StringIO, clock: Clock, *steps: tuple[float, Summary]) -> list[str]:
    with reporter(True, stream=stream, clock=clock) as tell:
        assert tell is not None
        for passed, summary in steps:
            clock.now += passed
            tell(summary)
    return stream.getvalue().splitlines()


def test_lines_come_at_most_once_a_second_and_at_the_end() -> None:
    steps = [(0.25, Summary(done=i, left=12 - i)) for i in range(1, 13)]
    lines = told(io.StringIO(), Clock(), *steps)
    assert lines == [
        "progress: 4 done, 0 failed, 8 left, 4.0/s, ETA 0:02",
        "progress: 8 done, 0 failed, 4 left, 4.0/s, ETA 0:01",
        "progress: 12 done, 0 failed, 0 left, 4.0/s, ETA 0:00",
        "progress: 12 done, 0 failed, 0 left, 4.0/s, in 0:03",
    ]


def test_the_last_line_stands_once() -> None:
    """Neither the last end, nor the count of what is left after it, gets a line of its own just before the last one."""
    clock, stream = Clock(), io.StringIO()
    with reporter(True, stream=stream, clock=clock) as tell:
        assert tell is not None
        for passed, summary in (
            (2.0, Summary(left=2, running=1)),
            (2.0, Summary(left=1, done=1)),
            (0.1, Summary(left=1, done=1, running=1)),
            (3.0, Summary(left=0, done=2)),
            (1.5, Summary(left=0, done=2, seconds=7.1)),
        ):
            clock.now += passed
            tell(summary)
    clock.now += 9.0
    tell(Summary(left=5, done=2, seconds=7.1))
    assert stream.getvalue().splitlines() == [
        "progress: 0 done, 0 failed, 1 running, 2 left, 0/s, ETA -:--",
        "progress: 1 done, 0 failed, 1 running, 1 left, 14.6/min, ETA 0:04",
        "progress: 2 done, 0 failed, 0 left, 16.9/min, in 0:07",
    ]


def test_a_call_that_waits_for_other_workers_still_says_so() -> None:
    steps = [(4.0, Summary(done=1, running=1, left=0)), *[(5.0, Summary(done=2, left=0))] * 3]
    lines = told(io.StringIO(), Clock(), *steps)
    assert [" in " in line for line in lines] == [False, False, False, True]


def test_lines_become_rarer_but_never_stop() -> None:
    steps = [(1.0, Summary(done=i, left=9000 - i)) for i in range(1, 9001)]
    lines = told(io.StringIO(), Clock(), *steps)
    assert 150 < len(lines) < 300


def test_lines_name_every_count_that_is_not_zero() -> None:
    summary = Summary(done=1, error=2, paused=3, released=4, lost=5, retried=6, running=7, left=None)
    (line,) = told(io.StringIO(), Clock(), (0.5, summary))
    assert line.startswith("progress: 1 done, 2 failed, 7 running, 3 paused, 4 released, 5 lost, 6 retried, ? left")


def test_a_stop_is_said() -> None:
    summary = Summary(done=1, running=2, left=9, stopped_by="SIGINT")
    lines = told(io.StringIO(), Clock(), (1.0, summary), (0.5, replace(summary, running=0, released=2, seconds=2.0)))
    assert lines == [
        "progress: 1 done, 0 failed, 2 running, 9 left, stopping (SIGINT)",
        "progress: 1 done, 0 failed, 2 released, 9 left, 30.0/min, in 0:02, stopped by SIGINT",
    ]


def test_nothing_happened_nothing_said() -> None:
    assert told(io.StringIO(), Clock(), (0.1, Summary(left=0, seconds=0.1))) == []
    assert told(io.StringIO(), Clock()) == []


def test_a_broken_pipe_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("the reader is gone")

    lines = told(Broken(), Clock(), (2.0, Summary(done=1, left=1)), (2.0, Summary(done=2, left=0)))
    assert lines == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the reader is gone" in caplog.text


def test_none_and_false_say_nothing_where_there_is_no_terminal() -> None:
    for quiet in (None, False):
        stream = io.StringIO()
        with reporter(quiet, stream=stream) as tell:
            assert tell is None
        assert stream.getvalue() == ""


def test_without_any_stderr_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with reporter(True) as tell:
        assert tell is None


def test_a_function_is_called_itself_and_its_errors_pass() -> None:
    heard: list[Summary] = []

    def listen(summary: Summary) -> None:
        heard.append(summary)
        if summary.error:
            raise ValueError("enough")

    with reporter(listen) as tell:
        assert tell is listen
        tell(Summary(done=1))
        with pytest.raises(ValueError, match="enough"):
            tell(Summary(error=1))
    assert heard == [Summary(done=1), Summary(error=1)]


def test_plain_lines_import_no_rich() -> None:
    code = "import sys; from asyncexp.progress import Lines; Lines(sys.stderr, lambda: 0.0); "
    code += "assert 'rich' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- rate and remaining time


def test_the_rate_is_of_a_sliding_window() -> None:
    clock = Clock()
    pace = Pace(clock)
    summary = Summary(left=100_000)
    for per_second in [100] * 60 + [10] * 60:
        clock.now += 1.0
        summary = replace(summary, done=summary.done + per_second)
        pace.note(summary)
    assert pace.rate() == pytest.approx(10, rel=0.05)


def test_rare_ends_keep_a_steady_rate() -> None:
    clock = Clock()
    pace = Pace(clock)
    for hour in range(1, 30):
        clock.now += 3600.0
        pace.note(Summary(done=hour, left=100 - hour))
    assert pace.rate() * 3600 == pytest.approx(1.0, rel=0.01)
    assert pace.eta_seconds(Summary(done=29, left=71)) == pytest.approx(71 * 3600, rel=0.01)


def test_the_rate_sinks_while_nothing_ends() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 1.0
    pace.note(Summary(done=10, left=10))
    before = pace.rate()
    clock.now += 9.0
    pace.note(Summary(done=10, left=10))
    assert pace.rate() == pytest.approx(before / 10)


def test_other_workers_shorten_the_remaining_time() -> None:
    clock = Clock()
    pace = Pace(clock)
    pace.note(Summary(left=1000))
    clock.now += 10.0
    summary = Summary(done=100, left=500, running=0)
    pace.note(summary)
    assert pace.rate() == pytest.approx(10)
    assert pace.eta_seconds(summary) == pytest.approx(10)


def test_no_remaining_time_while_it_cannot_be_told() -> None:
    clock = Clock()
    pace = Pace(clock)
    clock.now += 1.0
    assert pace.eta_seconds(Summary(left=5)) is None
    pace.note(Summary(done=1))
    assert pace.eta_seconds(Summary(done=1)) is None


def test_the_window_stays_small() -> None:
    clock = Clock()
    pace = Pace(clock)
    for step in range(100_000):
        clock.now += 0.1
        pace.note(Summary(done=step * 2000, left=10))
    assert len(pace._marks) < 400


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(0, "0/s"), (12345.6, "12346/s"), (99.94, "99.9/s"), (0.5, "30.0/min"), (0.01, "36.0/h"), (1, "1.0/s")],
)
def test_rates(per_second: float, text: str) -> None:
    assert rate_text(per_second) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (93784, "1 d 2:03")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span_text(seconds) == text
