"""Looking again and again: in place on a terminal, line after line elsewhere, until Ctrl-C."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from asyncexp.cli import following, output
from asyncexp.cli.cells import moment, one_line
from asyncexp.cli.look import LONGEST, document, screen
from asyncexp.cli.pace import Pace
from asyncexp.cli.place import Place
from asyncexp.errors import DatabaseError

if TYPE_CHECKING:
    from rich.live import Live

    from asyncexp import Experimenter
    from asyncexp.store.look import Overview

REST = 10.0
"""Times what a look took: so long the next one waits at least."""
PATIENCE_SECONDS = 3.0
"""A look that takes longer is told to be under way."""


async def watch(place: Place, condition: dict[str, Any] | None, interval_seconds: float) -> int | None:
    """Shows look after look until Ctrl-C.

    Raises:
        DatabaseError: the first look fails. What fails later is told, and tried again.
    """
    return await following.until_ctrl_c(_watch(place, condition, interval_seconds))


async def _watch(place: Place, condition: dict[str, Any] | None, interval_seconds: float) -> None:
    console = output.out()
    in_place = console.is_terminal and not console.is_dumb_terminal and not place.json
    async with place.open() as experimenter:
        with following.ends_soon():
            watched = Watched(place, experimenter, condition, interval_seconds)
            await watched.look()
            await (_in_place(watched) if in_place else _line_by_line(watched))


class Watched:
    """What is known by the looks so far."""

    def __init__(
        self, place: Place, experimenter: Experimenter, condition: dict[str, Any] | None, interval_seconds: float
    ) -> None:
        self.place = place
        self.condition = condition
        self.failure: DatabaseError | None = None
        self.failing_since = 0.0
        self._experimenter = experimenter
        self._interval_seconds = interval_seconds
        self.overview: Overview
        self.pace: Pace | None = None

    async def look(self) -> None:
        self.overview = await self._experimenter.overview(self.condition, longest=LONGEST)
        if self.pace is None:
            self.pace = Pace(self.overview)
        self.pace.note(self.overview)

    async def try_to_look(self) -> None:
        """Keeps what was seen before if the database does not answer."""
        try:
            await self.look()
            self.failure = None
        except DatabaseError as failure:
            if self.failure is None:
                self.failing_since = time.monotonic()
            self.failure = failure

    @property
    def rest_seconds(self) -> float:
        return max(self._interval_seconds, REST * self.overview.scan_seconds)

    @property
    def figures(self) -> tuple[float, float | None]:
        """Rate and ETA."""
        assert self.pace is not None, "look() comes first"
        return self.pace.rate, self.pace.eta_seconds(self.condition)


# ------------------------------------------------------------------------------------------ in place


async def _in_place(watched: Watched) -> None:
    from rich.live import Live

    with Live(console=output.out(), auto_refresh=False, vertical_overflow="crop", redirect_stderr=False) as live:
        while True:
            _paint(live, watched, f"every {watched.rest_seconds:.1f} s, until Ctrl-C")
            await asyncio.sleep(watched.rest_seconds)
            await _looked(live, watched)


async def _looked(live: Live, watched: Watched) -> None:
    """A look; one that lasts is told to be under way."""
    began = time.monotonic()
    look = asyncio.ensure_future(watched.try_to_look())
    try:
        while not (await asyncio.wait([look], timeout=PATIENCE_SECONDS))[0]:
            _paint(live, watched, f"waiting for the database for {time.monotonic() - began:.0f} s")
    finally:
        look.cancel()


def _paint(live: Live, watched: Watched, note: str) -> None:
    from rich.console import Group
    from rich.text import Text

    from asyncexp.progress import span_text

    foot = [Text(note, "dim", no_wrap=True, overflow="ellipsis")]
    if watched.failure is not None:
        away = span_text(time.monotonic() - watched.failing_since)
        foot.insert(0, Text(f"As it was; for {away}: {one_line(watched.failure)}", "bold red"))
    rows = live.console.height - len(foot)
    parts = screen(watched.place, watched.overview, *watched.figures, watched.condition, rows=rows)
    live.update(Group(*foot, *parts), refresh=True)


# -------------------------------------------------------------------------------------- line by line


async def _line_by_line(watched: Watched) -> None:
    away = following.Away()
    while True:
        if watched.failure is not None:
            away.told(watched.failure)
        else:
            away.back()
            _say(watched)
        await asyncio.sleep(watched.rest_seconds)
        await watched.try_to_look()


def _say(watched: Watched) -> None:
    if watched.place.json:
        output.write_json(document(watched.place, watched.overview, *watched.figures), line=True)
    else:
        output.say(_line(watched))
        output.out().file.flush()


def _line(watched: Watched) -> str:
    from asyncexp.progress import rate_text, span_text

    rate, eta_seconds = watched.figures
    states = [worker.state for worker in watched.overview.workers]
    words = [f"{number} {name}" for name, number in watched.overview.counts.items()]
    words += [f"{states.count('live')} workers", rate_text(rate)]
    words += [] if eta_seconds is None else [f"ETA {span_text(eta_seconds)}"]
    return f"{moment(watched.overview.at)} UTC  " + ", ".join(words)
