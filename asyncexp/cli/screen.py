"""What `asyncexp run` shows while it runs: on a terminal a bar, the database, what runs, and failures as they come.

It is told by the run (`progress=`) and looks at it from memory; a thread of its own draws.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from asyncexp import progress
from asyncexp.cli import cells
from asyncexp.cli.output import in_unicode
from asyncexp.experiment import Failure, Running, Snapshot, Summary
from asyncexp.progress import Bar, span_text
from asyncexp.store.study import utc

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.segment import Segment

    from asyncexp.cli.ending import Terminal

LOOK_SECONDS = 0.25
LOOK_SHARE = 50
"""Looking again waits at least so many times what the last look took."""
KEPT_FAILURES = 1_000
SHOWN_FAILURES = 10
"""At once; of the others their number is told."""
VALUE_COLUMNS = 20
"""What one keyfield may take."""
LOW_ROWS = 6
"""A terminal so low shows the bar alone."""
MARGIN = 3
"""Columns that stay empty: what a terminal shows of a Ctrl-C must not begin a new line."""
WIDE_COLUMNS = 60
"""A narrower terminal does not tell how old the last signs are, nor where the database is."""
GAP = "  "
_WHY = {"max_errors": ", too many errors", "stop": ", as somebody asked", "outage": ", the database is away"}
NOTHING = Snapshot((), (), None, None, 0.0)


Line = list[tuple[str, str]]
"""Words and their styles."""


class Watched(Protocol):
    def snapshot(self) -> Snapshot: ...


class Watch:
    """Follows a run: keeps the latest snapshot and the failures, and passes summaries on.

    Args:
        tell: called with each summary.
    """

    sampled = True

    def __init__(self, watched: Watched, tell: Callable[[Summary], None] | None = None) -> None:
        self.snapshot = NOTHING
        self.failures: list[Failure] = []
        """As they came; the first so many."""
        self._known: set[tuple[int, int]] = set()
        self._watched = watched
        self._tell = tell
        self._errors = 0

    def __call__(self, summary: Summary, /) -> None:
        if summary.error != self._errors and not summary.running:  # maybe the last: nobody looks after it
            self._errors = summary.error
            self.look()
        if self._tell is not None:
            self._tell(summary)

    def look(self) -> None:
        self.snapshot = self._watched.snapshot()
        for failure in self.snapshot.failures:
            key = (failure.id, failure.attempt)
            if key not in self._known and len(self.failures) < KEPT_FAILURES:
                self._known.add(key)
                self.failures.append(failure)

    async def keep_looking(self) -> None:
        while True:
            began = time.monotonic()
            self.look()
            await asyncio.sleep(max(LOOK_SECONDS, LOOK_SHARE * (time.monotonic() - began)))


@asynccontextmanager
async def watching(
    watched: Watched, place: str, grace_seconds: float, terminal: Terminal, *, plain: bool = False, quiet: bool = False
) -> AsyncIterator[Watch]:
    """Follows a run and shows it on standard error: a screen on a terminal, else plain lines, or nothing.

    Args:
        place: which database and table, in a few words.
        grace_seconds: how long what runs may take when the run is stopped.
        terminal: where it is shown, if it is.
    """
    console = None if plain or quiet else progress.terminal(sys.stderr)
    if quiet or sys.stderr is None:
        shown: Any = _hidden(watched)
    elif console is None:
        shown = _plain(watched)
    else:
        shown = _screen(watched, console, place, grace_seconds, terminal)
    with shown as watch:
        looking = asyncio.create_task(watch.keep_looking(), name="asyncexp screen")
        try:
            yield watch
        finally:
            looking.cancel()
            await asyncio.wait([looking])


@contextmanager
def _hidden(watched: Watched) -> Iterator[Watch]:
    yield Watch(watched)


@contextmanager
def _plain(watched: Watched) -> Iterator[Watch]:
    with progress.plain(sys.stderr) as lines:
        yield Watch(watched, lines)


@contextmanager
def _screen(
    watched: Watched, console: Console, place: str, grace_seconds: float, terminal: Terminal
) -> Iterator[Watch]:
    bar = Bar(console, time.monotonic)
    watch = Watch(watched, bar)
    screen = Screen(console, bar, watch, place, grace_seconds)

    def above() -> None:
        terminal.let_go_if_gone()
        screen.tell_failures()

    with progress.claimed(), progress.drawn(console, screen.look, screen.finish, above=above):
        yield watch


# --------------------------------------------------------------------------------------- the screen


class Screen:
    """What is drawn; nothing here is called on the event loop."""

    def __init__(self, console: Console, bar: Bar, watch: Watch, place: str, grace_seconds: float) -> None:
        self._console = console
        self._bar = bar
        self._watch = watch
        self._place = place
        self._grace = grace_seconds
        self._stopping_since: float | None = None
        self._told = 0
        self._utf = in_unicode(console)

    def look(self) -> RenderableType:
        """As many lines as half the terminal has."""
        from rich.console import Group

        bar, height = self._bar.line(), self._console.size.height
        if self._bar.over or height <= LOW_ROWS:
            return bar
        width = max(1, self._console.width - MARGIN)
        head = [self._database(width)]
        if self._bar.latest.stopped_by:
            head.append(self._stopping())
        lines = [*head, *self._running(width, max(1, height // 2 - 1 - len(head)))]
        return Group(bar, Drawn([cropped(line, width) for line in lines], utf=self._utf))

    def finish(self, live: Live) -> None:
        """At the end the account takes its place; where that goes elsewhere, the bar stays."""
        self._bar.over = True
        live.transient = sys.__stdout__ is not None and sys.__stdout__.isatty()

    def tell_failures(self) -> None:
        """Prints, above all else, those that have come meanwhile."""
        from rich.text import Text

        new = self._watch.failures[self._told :]
        self._told += len(new)
        for failure in new[:SHOWN_FAILURES]:
            words = in_ascii(cells.one_line(failure.line), self._utf)
            self._console.print(Text.assemble(("failed", "red"), f"  {failure.id}  {words}"))
        if len(new) > SHOWN_FAILURES:
            self._console.print(Text(f"failed  and {len(new) - SHOWN_FAILURES} more", "red"))

    def _database(self, width: int) -> Line:
        seen = self._watch.snapshot
        if seen.away_seconds is not None:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - seen.away_seconds))
            return [(f"database away since {since} ({span_text(seen.away_seconds)}), results are held", "bold red")]
        if seen.beat_seconds is None:
            return [(self._place, "bright_black")]
        old = seen.beat_seconds / max(seen.lease_seconds, 1e-9)
        style = "bold red" if old >= 1 else "yellow" if old >= 0.5 else "bright_black"
        life = f"sign of life {age_text(seen.beat_seconds)} ago, lease {age_text(seen.lease_seconds)}"
        place = fitted(self._place, width - len(life) - len(GAP)) + GAP if width >= WIDE_COLUMNS else ""
        return [(place, "bright_black"), (life, style)]

    def _stopping(self) -> Line:
        summary = self._bar.latest
        by = summary.stopped_by or ""
        now = time.monotonic()
        self._stopping_since = self._stopping_since or now
        words = f"stopping{_WHY.get(by, '')}: {summary.running} still run"
        if by != "max_errors":
            words += f", up to {max(0.0, self._grace - (now - self._stopping_since)):.0f} s; Ctrl-C again to stop now"
        return [(words, "bold yellow")]

    def _running(self, width: int, room: int) -> Sequence[Line]:
        """What runs longest, one a line."""
        running = self._watch.snapshot.running
        shown = running if len(running) <= room else running[: room - 1]
        lines = rows(shown, utc(), width)
        if len(shown) < len(running):
            lines.append([(f"… and {len(running) - len(shown)} more", "bright_black")])
        return lines


class Drawn:
    """Lines as rich draws them; a tenth of what its own texts cost, which are far more able.

    Args:
        utf: whether the terminal has other characters than those of ASCII.
    """

    def __init__(self, lines: Sequence[Line], *, utf: bool) -> None:
        self._lines = lines
        self._utf = utf

    def __rich_console__(self, console: Console, _: object) -> Iterator[Segment]:
        from rich.segment import Segment

        for line in self._lines:
            for words, style in line:
                yield Segment(in_ascii(words, self._utf), console.get_style(style) if style else None)
            yield Segment.line()


def rows(running: Sequence[Running], now: datetime, width: int) -> list[Line]:
    """ID, since when, fraction, keyfields, message and last sign of each, in columns, as (words, style)."""
    before = [
        (_column(str(each.id) for each in running), "bold"),
        (_column(_since(each, now) for each in running), ""),
        (_column("" if each.progress is None else f"{each.progress:.0%}" for each in running), "cyan"),
    ]
    signs = _column(_last_sign(each, now) for each in running) if width >= WIDE_COLUMNS else []
    after = [(signs, "bright_black")]
    room = width - sum(len(column[0]) + len(GAP) for column, _ in before + after if any(column))
    middle = _middle(running, room)
    columns = [(column, style) for column, style in before + middle + after if any(column)]
    return [
        [(column[number] + (GAP if column is not columns[-1][0] else ""), style) for column, style in columns]
        for number in range(len(running))
    ]


def _middle(running: Sequence[Running], room: int) -> list[tuple[list[str], str]]:
    """Keyfields and messages, in so many columns."""
    keys = [cells.named(each.keyfields, longest=VALUE_COLUMNS) for each in running]
    messages = [each.message or "" for each in running]
    for_messages = min(max(map(len, messages), default=0), room // 2)
    if for_messages:
        room -= len(GAP)
    for_keys = min(max(map(len, keys), default=0), room - for_messages)
    return [
        ([fitted(each, for_keys) for each in keys], ""),
        ([fitted(each, room - for_keys if for_messages else 0) for each in messages], "cyan"),
    ]


def _column(words: Iterable[str]) -> list[str]:
    words = list(words)
    width = max(map(len, words), default=0)
    return [word.rjust(width) for word in words]


def _since(running: Running, now: datetime) -> str:
    return "starts" if running.started is None else span_text(max(0.0, (now - running.started).total_seconds()))


def _last_sign(running: Running, now: datetime) -> str:
    """How old it is, of those that give any."""
    if running.heartbeat is None or (running.progress is None and running.message is None):
        return ""
    return f"{age_text(max(0.0, (now - running.heartbeat).total_seconds()))} ago"


def fitted(words: str, width: int) -> str:
    """On one line and in exactly so many columns: cut, or filled up."""
    from rich.cells import cell_len, set_cell_size

    if width <= 0:
        return ""
    words = cells.one_line(words)
    if cell_len(words) <= width:
        return set_cell_size(words, width)
    return set_cell_size(words, width - 1) + "…"


def cropped(line: Line, width: int) -> Line:
    """As much of a line as there is room for."""
    from rich.cells import cell_len

    made: Line = []
    for words, style in line:
        size = cell_len(words)
        made.append((words if size <= width else fitted(words, width), style))
        width -= size
        if width <= 0:
            break
    return made


def in_ascii(words: str, utf: bool) -> str:
    """In letters that a terminal has which has no others."""
    return words if utf else words.replace("…", "...").encode("ascii", "replace").decode()


def age_text(seconds: float) -> str:
    """`12 s`, or as `span_text`."""
    return f"{seconds:.0f} s" if seconds <= 120 else span_text(seconds)
