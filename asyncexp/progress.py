"""How far a call of `execute` is: a bar on a terminal, plain lines elsewhere, or the caller's own function.

Being told costs next to nothing: samples are enough for what is shown here. A thread of its own draws, a few
times a second, so that the clock goes on while experiments take their time.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context
from functools import partial
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from asyncexp import html
from asyncexp.experiment import Summary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Clock = Callable[[], float]

DRAWS_A_SECOND = 5.0
RATE_WINDOW_SECONDS = 30.0
RATE_WINDOW_ENDS = 16
"""The rate covers at least so many ended experiments: those of an hour each have one too."""
BAR_COLUMNS = 24
"""What the rarer counts leave to the bar; where there is no room for them they are left out."""
IDLE_SECONDS = 5.0
"""Once nothing runs any more the next plain line waits so long: mostly it is the last one, which has its own words."""
RARER = ("running", "paused", "released", "lost", "retried")


class Progress(Protocol):
    """What is told how a call of `execute` stands: at every change, and once more at its end.

    Who has an attribute `sampled` that is true is told a few times a second instead, which costs a run less.
    """

    def __call__(self, summary: Summary, /) -> None: ...


@contextmanager
def reporter(
    progress: bool | Callable[[Summary], None] | None,
    *,
    stream: TextIO | None = None,
    clock: Clock = time.monotonic,
) -> Iterator[Progress | None]:
    """Yields what to call with each running summary, or None where nobody wants to know.

    `True` is a bar on a terminal and plain lines elsewhere, at most one a second and one at the end;
    `None` a bar on a terminal and nothing elsewhere; `False` nothing; a function is called itself, and
    what it raises is not caught. `stream` is where bar and lines go, by default `sys.stderr` as it is
    at that moment. While a bar is up, what is printed goes above it. A terminal that cannot move its cursor
    gets plain lines, and so does a second bar while one is up in the same process. In a notebook the cell shows
    the bar, for `True` and for `None`.

    Nothing is left behind when it ends, however it ends: no thread, no changed `sys.stdout`.
    """
    stream = stream or sys.stderr
    if callable(progress):
        yield progress
    elif progress is False or stream is None:
        yield None
    elif in_notebook():
        with _cell(clock) as cell:
            yield cell
    else:
        with claimed() as free:
            if free and (console := terminal(stream)):
                yield from _bar(console, clock)
            elif progress or stream.isatty():
                with plain(stream, clock) as lines:
                    yield lines
            else:
                yield None


@contextmanager
def plain(stream: TextIO, clock: Clock = time.monotonic) -> Iterator[Lines]:
    """Plain lines, the last one at the end."""
    lines = Lines(stream, clock)
    try:
        yield lines
    finally:
        lines.end()


class Pace:
    """How many experiments end in a second, over a sliding window, and how long the rest will take."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._begun = clock()
        self._marks: deque[tuple[float, int, int | None]] = deque([(self._begun, 0, None)])

    @property
    def seconds(self) -> float:
        return self._clock() - self._begun

    def note(self, summary: Summary) -> None:
        """Takes a summary into account; worth calling a few times a second."""
        ended, still = ended_in(summary), summary.left
        if self._marks[0][2] is None and still is not None:
            self._marks[0] = (self._begun, 0, still + ended)
        if (ended, still) != self._marks[-1][1:]:
            self._marks.append((self._clock(), ended, still))
        self._forget(ended)

    def _forget(self, ended: int) -> None:
        horizon = self._clock() - RATE_WINDOW_SECONDS
        marks = self._marks
        while len(marks) > 2 and marks[1][0] < horizon and ended - marks[1][1] >= RATE_WINDOW_ENDS:
            marks.popleft()

    def rate(self) -> float:
        """Experiments of this call that end in a second."""
        then, ended, _ = self._marks[0]
        return (self._marks[-1][1] - ended) / max(self._clock() - then, 1e-9)

    def eta_seconds(self, summary: Summary) -> float | None:
        """Until no row is open, or None while that cannot be told.

        Other workers may draw from the same table: then the open rows shrink faster than ours end.
        """
        still = summary.left
        then, _, were = self._marks[0]
        if still is None or were is None:
            return None
        pace = max(self.rate(), (were - still) / max(self._clock() - then, 1e-9))
        return still / pace if pace > 0 else None


def ended_in(summary: Summary) -> int:
    """Experiments that this call has brought to an end."""
    return summary.done + summary.error + summary.paused


def _anything_in(summary: Summary) -> bool:
    return any((ended_in(summary), summary.released, summary.lost, summary.retried, summary.running))


class Lines:
    """Plain lines, for files and pipes: at most one a second, and fewer the longer it takes."""

    sampled = True

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream: TextIO | None = stream
        self._clock = clock
        self._pace = Pace(clock)
        self._latest = self._shown = Summary()
        self._due = clock() + 1.0
        self._due_idle = 0.0

    def __call__(self, summary: Summary, /) -> None:
        now = self._clock()
        if self._latest.running and not summary.running:
            self._due_idle = now + IDLE_SECONDS
        self._latest = summary
        if now >= self._due and (summary.running or now >= self._due_idle):
            self._show(over=False)

    def end(self) -> None:
        """Writes the last line, unless nothing happened at all; nothing comes after it."""
        if _anything_in(self._latest):
            self._show(over=True)
        self._stream = None

    def _show(self, *, over: bool) -> None:
        self._pace.note(self._latest)
        self._due = self._clock() + min(60.0, max(1.0, self._pace.seconds / 20))
        self._write("progress: " + ", ".join(_words(self._latest, self._pace, over=over)))

    def _write(self, line: str) -> None:
        if self._stream is None:
            return
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError) as error:  # a full disk or a closed pipe must not end experiments
            self._stream = None
            _say_unseen(error)


def _say_unseen(error: Exception) -> None:
    logging.getLogger(__name__).warning("progress is no longer shown: %s", error)


class Bar:
    """What the bar shows; rich asks for it whenever it draws."""

    sampled = True

    def __init__(self, console: Console, clock: Clock) -> None:
        self._console = console
        self._pace = Pace(clock)
        self.latest = Summary()
        self.over = False

    def __call__(self, summary: Summary, /) -> None:
        self.latest = summary

    def line(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        summary = self.latest
        self._pace.note(summary)
        room = self._console.width - BAR_COLUMNS
        text = "  ".join(_words(summary, self._pace, over=self.over, room=room))
        if room > 0:
            text = text.rjust(-(-len(text) // 8) * 8)  # else the bar's end trembles with every digit
        words = Text(text)
        words.highlight_regex(r"[1-9]\d* failed", "red")
        line = Table.grid(padding=(0, 2, 0, 0), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, overflow="crop")
        ended, still = ended_in(summary), summary.left
        total = None if still is None else max(1, ended + still)
        bar = ProgressBar(total, ended, pulse=total is None and not self.over)
        bar.style, bar.complete_style, bar.finished_style = "bright_black", "cyan", "green"
        line.add_row(bar, words)
        return line


def _words(summary: Summary, pace: Pace, *, over: bool, room: int = 1000) -> list[str]:
    left = "?" if summary.left is None else str(summary.left)
    first = [f"{summary.done} done", f"{summary.error} failed"]
    last = [f"{left} left", *_pace_words(summary, pace, over=over)]
    room -= len("  ".join(first + last))
    for word in [f"{count} {name}" for name in RARER if (count := getattr(summary, name))]:
        room -= len(word) + 2
        if room >= 0:
            first.append(word)
    return first + last


def _pace_words(summary: Summary, pace: Pace, *, over: bool) -> list[str]:
    if over:
        seconds = summary.seconds or pace.seconds
        words = [rate_text(ended_in(summary) / max(seconds, 1e-9)), f"in {span_text(seconds)}"]
        return [*words, *([f"stopped by {summary.stopped_by}"] if summary.stopped_by else [])]
    if summary.stopped_by:
        return [f"stopping ({summary.stopped_by})"]
    eta = pace.eta_seconds(summary)
    return [rate_text(pace.rate()), f"ETA {'-:--' if eta is None else span_text(eta)}"]


# ---------------------------------------------------------------------------------------- notebooks


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, wherever that is shown; IPython on a terminal is none."""
    ipython = sys.modules.get("IPython")
    get = getattr(ipython, "get_ipython", None)
    return get is not None and getattr(get(), "kernel", None) is not None


class Cell:
    """A bar in the output of a notebook's cell."""

    sampled = True

    def __init__(self, clock: Clock) -> None:
        from IPython.display import display

        self._pace = Pace(clock)
        self._latest = Summary()
        self._shown = ""
        self._handle = display(self._content(over=False), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def __call__(self, summary: Summary, /) -> None:
        self._latest = summary

    def show(self, *, over: bool = False) -> None:
        """In any thread: what is shown is found by an ID of its own."""
        content = self._content(over=over)
        if self._handle is not None and content["text/html"] != self._shown:
            self._shown = content["text/html"]
            self._handle.update(content, raw=True)

    def _content(self, *, over: bool) -> dict[str, str]:
        summary = self._latest
        self._pace.note(summary)
        ended, still = ended_in(summary), summary.left
        words = ", ".join(_words(summary, self._pace, over=over))
        share = None if still is None else ended / max(1, ended + still)
        return {"text/html": html.bar(share, words, good=not summary.error), "text/plain": words}


def _for_latest_cell(show: Callable[[], None]) -> None:
    """As an answer to the cell that was run last: some frontends do not listen to those before it any more."""
    Context().run(show)


@contextmanager
def _cell(clock: Clock) -> Iterator[Cell]:
    cell = Cell(clock)
    try:
        with _drawing(partial(_for_latest_cell, cell.show)):
            yield cell
    finally:
        try:
            _for_latest_cell(partial(cell.show, over=True))
        except Exception as error:  # noqa: BLE001  (the kernel's connection may be gone)
            _say_unseen(error)


def rate_text(per_second: float) -> str:
    """A rate by the second, or by the minute or the hour where that says more."""
    if per_second >= 1 or per_second == 0:
        value, unit = per_second, "s"
    elif per_second >= 1 / 60:
        value, unit = per_second * 60, "min"
    else:
        value, unit = per_second * 3600, "h"
    return f"{value:.0f}/{unit}" if value >= 100 or value == 0 else f"{value:.1f}/{unit}"


def span_text(seconds: float) -> str:
    """A span as `m:ss`, `h:mm:ss` or `d d h:mm`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_one_bar = Lock()


def terminal(stream: TextIO | None) -> Console | None:
    """A console that can draw on `stream`, or None: nothing that can move its cursor is there."""
    if stream is None or stream.closed or not stream.isatty():
        return None
    from rich.console import Console

    console = Console(file=stream, markup=False, emoji=False, highlight=False, soft_wrap=True)
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def claimed() -> Iterator[bool]:
    """Whether nothing is drawn in this process yet; if so, nothing else is while inside."""
    mine = _one_bar.acquire(blocking=False)
    try:
        yield mine
    finally:
        if mine:
            _one_bar.release()


def _bar(console: Console, clock: Clock) -> Iterator[Bar]:
    bar = Bar(console, clock)

    def finish(live: Live) -> None:
        bar.over = True
        live.transient = not _anything_in(bar.latest)

    with drawn(console, bar.line, finish):
        yield bar


@contextmanager
def drawn(
    console: Console,
    look: Callable[[], RenderableType],
    finish: Callable[[Live], None],
    above: Callable[[], None] | None = None,
) -> Iterator[None]:
    """While inside, shows what `look` gives, a few times a second, below whatever is printed and logged.

    An error of the terminal, or of `look`, ends the drawing and nothing else.

    Args:
        look: called in another thread.
        finish: called before it is drawn for the last time.
        above: called each time before it is drawn: what this prints on the console stays above.
    """
    from rich.live import Live

    live = Live(
        console=console,
        get_renderable=look,
        auto_refresh=False,  # its thread is not joined at the end; ours is
        redirect_stdout=_is_terminal(sys.stdout),
        redirect_stderr=_is_terminal(sys.stderr),
    )

    def draw() -> None:
        if above is not None:
            above()
        live.refresh()

    with ExitStack() as stack:
        stack.enter_context(_up(live))
        stack.enter_context(_logging_follows())
        stack.callback(finish, live)
        if above is not None:
            stack.callback(_unless_gone, above)
        stack.enter_context(_drawing(draw))
        yield


def _unless_gone(draw: Callable[[], None]) -> None:
    with suppress(OSError, ValueError):
        draw()


@contextmanager
def _up(live: Live) -> Iterator[None]:
    try:
        live.start()
    except OSError as error:
        _say_unseen(error)
    try:
        yield
    finally:
        try:
            live.stop()
        except (OSError, ValueError) as error:  # a terminal that is gone must not cost the summary
            _say_unseen(error)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()


@contextmanager
def _drawing(draw: Callable[[], None]) -> Iterator[None]:
    over = Event()

    def keep_drawing() -> None:
        try:
            while not over.wait(1 / DRAWS_A_SECOND):
                draw()
        except Exception as error:  # noqa: BLE001  (whatever it is, experiments go on)
            _say_unseen(error)

    thread = Thread(target=keep_drawing, name="asyncexp progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _logging_follows() -> Iterator[None]:
    """Handlers that log to the terminal do so above the bar."""
    moved = [(handler, handler.stream) for handler in _terminal_handlers()]
    for handler, stream in moved:
        handler.setStream(sys.stdout if stream is _beneath(sys.stdout) else sys.stderr)
    try:
        yield
    finally:
        for handler, stream in moved:
            handler.setStream(stream)


def _terminal_handlers() -> list[logging.StreamHandler[Any]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {h for logger in loggers if isinstance(logger, logging.Logger) for h in logger.handlers}
    streams = [below for stream in (sys.stdout, sys.stderr) if (below := _beneath(stream)) is not stream]
    return [h for h in handlers if isinstance(h, logging.StreamHandler) and h.stream in streams]


def _beneath(stream: Any) -> Any:
    """The stream that a bar has put its own in front of."""
    return getattr(stream, "rich_proxied_file", stream)


def _leave_bar_to_parent() -> None:
    """A forked child prints straight: the bar and its locks belong to its parent."""
    if _one_bar.locked():
        sys.stdout, sys.stderr = _beneath(sys.stdout), _beneath(sys.stderr)


os.register_at_fork(after_in_child=_leave_bar_to_parent)
