"""`asyncexp logs`: the lines of a log table: all, the last, or as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import complete, log_lines, options, output, words
from asyncexp.cli.codes import NOT_ALL_WELL, OK, USAGE, Refused
from asyncexp.cli.command import command
from asyncexp.cli.place import Place
from asyncexp.errors import DatabaseError, unknown

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.store.lines import LogMark

PANEL = "Watch"
POLL_SECONDS = 1.0
PAGE = 5_000
TAIL = 10
ENDED = ("done", "error", "paused")


@command(PANEL)
async def logs(
    place: Place,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="The log table; without it, which there are.", autocompletion=complete.logtables
        ),
    ] = None,
    ids: options.Ids = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines, until Ctrl-C or the end of these experiments.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, metavar="N", help="Only the last ones; 10 with --follow.")
    ] = None,
    all_attempts: options.AllAttempts = False,
) -> int | None:
    """The lines of a log table, in the order written. Dates are UTC.

    \b
    Examples:
      asyncexp logs
      asyncexp logs epochs 12
      asyncexp logs epochs --lines 20
      asyncexp logs epochs 12 --follow
    """
    from asyncexp.cli import following

    if name is None:
        return _list(place)
    reading = Reading(place, name, words.ids(ids), all_attempts)
    if follow:
        return await following.until_ctrl_c(_follow(reading, TAIL if lines is None else lines))
    return await _show(reading, lines)


def _list(place: Place) -> int:
    tables = place.schema.logtables
    if place.json:
        output.write_json([{"name": name, "columns": {c.name: str(c.type) for c in tables[name]}} for name in tables])
    elif tables:
        output.grid(
            ("log table", "columns"),
            [(name, ", ".join(f"{column.name} {column.type}" for column in tables[name])) for name in tables],
        )
    else:
        output.say("The configuration has no log tables; they stand under `Database: logtables`.")
    return OK


class Reading:
    """Which lines are read."""

    def __init__(self, place: Place, name: str, ids: list[int] | None, all_attempts: bool) -> None:
        tables = place.schema.logs
        self.name = name if name in tables else name.removeprefix(f"{place.schema.name}__")
        if self.name not in tables:
            raise Refused(unknown("no log table", name, tables), USAGE)
        self.place = place
        self.columns = [column.name for column in place.schema.logtables[self.name]]
        self.ids = ids
        self.all_attempts = all_attempts

    async def last(self, experimenter: Experimenter, most: int) -> list[dict[str, Any]]:
        return await experimenter.log_lines(self.name, self.ids, last=most, all_attempts=self.all_attempts)

    async def pages(self, experimenter: Experimenter) -> AsyncIterator[list[dict[str, Any]]]:
        """All lines, some at a time."""
        after: int | None = 0
        while after is not None:
            page = await experimenter.log_lines(
                self.name, self.ids, after=after, most=PAGE, all_attempts=self.all_attempts
            )
            after = page[-1]["ID"] if page else None
            yield page

    async def new(self, experimenter: Experimenter, mark: LogMark | None) -> tuple[list[dict[str, Any]], LogMark]:
        return await experimenter.new_log_lines(self.name, mark, self.ids, all_attempts=self.all_attempts)


async def _show(reading: Reading, most: int | None) -> int:
    printer = (log_lines.Array if reading.place.json else log_lines.Columns)(reading.columns)
    async with reading.place.open() as experimenter:
        if most is None:
            async for page in reading.pages(experimenter):
                printer.print(page)
        else:
            printer.print(await reading.last(experimenter, most))
    printer.end()
    return OK


# ---------------------------------------------------------------------------------------- following


async def _follow(reading: Reading, most: int) -> int:
    from asyncexp.cli import following

    printer = (log_lines.Stream if reading.place.json else log_lines.Columns)(reading.columns)
    async with reading.place.open() as experimenter:
        with following.ends_soon():
            _, mark = await reading.new(experimenter, None)
            shown = await reading.last(experimenter, most)
            printer.print(shown)
            return await _go_on(reading, experimenter, mark, printer, {line["ID"] for line in shown})


async def _go_on(
    reading: Reading, experimenter: Experimenter, mark: LogMark, printer: log_lines.Printer, shown: set[int]
) -> int:
    """Until these experiments have ended: a row ends after its last line was committed."""
    import asyncio

    from asyncexp.cli import following

    away = following.Away()
    while True:
        try:
            over = await _over(reading, experimenter)
            found, mark = await reading.new(experimenter, mark)
            away.back()
        except DatabaseError as failure:
            over, found = None, []
            away.told(failure)
        printer.print([line for line in found if line["ID"] not in shown])
        if over is not None:
            return over
        await asyncio.sleep(POLL_SECONDS)


async def _over(reading: Reading, experimenter: Experimenter) -> int | None:
    """The exit code if nothing is to come any more."""
    if reading.ids is None:
        return None
    counts = await experimenter.counts({"ID": reading.ids})
    if any(number for status, number in counts.items() if status not in ENDED):
        return None
    if sum(counts.values()) == len(reading.ids):
        return OK
    output.note("error: not all of these experiments exist")
    return NOT_ALL_WELL
