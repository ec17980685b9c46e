"""`asyncexp logs`: the lines of a log table: all, the last, or as they come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyncexp.cli import words
from asyncexp.cli.command import NOT_ALL_WELL, OK, USAGE, Refused, command
from asyncexp.cli.place import Place
from asyncexp.errors import DatabaseError

if TYPE_CHECKING:
    from rich.text import Text

    from asyncexp import Experimenter
    from asyncexp.store.lines import LogMark

PANEL = "Watch"
POLL_SECONDS = 1.0
PAGE = 5_000
TAIL = 10
ENDED = ("done", "error", "paused")
Line = Mapping[str, Any]


@command(PANEL)
async def logs(
    place: Place,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The log table; without it, which there are.")
    ] = None,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Only of these experiments.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines, until Ctrl-C or the end of these experiments.")
    ] = False,
    lines: Annotated[
        int | None, typer.Option("--lines", "-n", min=0, metavar="N", help="Only the last ones; 10 with --follow.")
    ] = None,
    all_attempts: Annotated[
        bool, typer.Option("--all-attempts", help="Also of attempts that were lost, released or retried.")
    ] = False,
) -> int | None:
    """The lines of a log table, in the order written. Dates are UTC.

    \b
    Examples:
      asyncexp logs
      asyncexp logs epochs 12
      asyncexp logs epochs --lines 20
      asyncexp logs epochs 12 --follow
    """
    from asyncexp.cli import watching

    if name is None:
        return _list(place)
    reading = Reading(place, name, words.ids(ids), all_attempts)
    if follow:
        return await watching.until_ctrl_c(_follow(reading, TAIL if lines is None else lines))
    return await _show(reading, lines)


def _list(place: Place) -> int:
    from asyncexp.cli import output

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
        from asyncexp.errors import unknown

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
    printer = (_Array if reading.place.json else Columns)(reading.columns)
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
    from asyncexp.cli.watching import ends_soon

    printer = (_Stream if reading.place.json else Columns)(reading.columns)
    async with reading.place.open() as experimenter:
        with ends_soon():
            _, mark = await reading.new(experimenter, None)
            shown = await reading.last(experimenter, most)
            printer.print(shown)
            return await _go_on(reading, experimenter, mark, printer, {line["ID"] for line in shown})


async def _go_on(reading: Reading, experimenter: Experimenter, mark: LogMark, printer: Printer, shown: set[int]) -> int:
    """Until these experiments have ended: a row ends after its last line was committed."""
    away = Away()
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


class Away:
    """Says once that the database is away, and once that it is back."""

    def __init__(self) -> None:
        self._away = False

    def told(self, failure: Exception) -> None:
        from asyncexp.cli import output

        if not self._away:
            output.note(f"the database does not answer, trying on: {failure}")
        self._away = True

    def back(self) -> None:
        from asyncexp.cli import output

        if self._away:
            output.note("the database answers again")
        self._away = False


async def _over(reading: Reading, experimenter: Experimenter) -> int | None:
    """The exit code if nothing is to come any more."""
    from asyncexp.cli import output

    if reading.ids is None:
        return None
    counts = await experimenter.counts({"ID": reading.ids})
    if any(number for status, number in counts.items() if status not in ENDED):
        return None
    if sum(counts.values()) == len(reading.ids):
        return OK
    output.note("error: not all of these experiments exist")
    return NOT_ALL_WELL


# ------------------------------------------------------------------------------------------ printing


class Columns:
    """Lines one below the other, in columns that grow when they must."""

    def __init__(self, columns: Sequence[str], *, indent: str = "") -> None:
        self._columns = columns
        self._indent = indent
        self._widths: list[int] | None = None
        self._several_attempts = False

    def print(self, lines: Sequence[Line]) -> None:
        from asyncexp.cli import output

        if not lines:
            return
        rows = [self._cells(line) for line in lines]
        if self._widths is None:
            headings = ["ID", "attempt", "time (UTC)", *self._columns]
            self._widths = [0] * len(headings)
            self._widen([headings, *([str(each) for each in row] for row in rows)])
            self._say([_text(heading, "bold") for heading in headings])
        self._widen([[str(each) for each in row] for row in rows])
        for row in rows:
            self._say(row)
        output.out().file.flush()

    def end(self) -> None:
        if self._widths is None:
            from asyncexp.cli import output

            output.note("no lines")

    def _cells(self, line: Line) -> list[Text]:
        attempt, date = line["_attempt"], line["timestamp"]
        when = "-" if date is None else f"{date:%Y-%m-%d %H:%M:%S}.{date.microsecond // 1000:03}"
        told = (_cell(line[name]) for name in self._columns)
        return [_cell(line["experiment_id"]), _cell(attempt), _text(when), *told]

    def _widen(self, rows: Sequence[Sequence[str]]) -> None:
        from rich.cells import cell_len

        assert self._widths is not None, "the headings come first"
        for place, column in enumerate(zip(*rows, strict=True)):
            self._widths[place] = max(self._widths[place], *map(cell_len, column))

    def _say(self, row: Sequence[Text]) -> None:
        from rich.text import Text

        from asyncexp.cli import output

        assert self._widths is not None, "the headings come first"
        line = Text(self._indent)
        for text, width in zip(row, self._widths, strict=True):
            line.append_text(text)
            line.append(" " * (width - text.cell_len + 2))
        line.rstrip()
        output.say(line, cut=True)


def _cell(value: Any) -> Text:
    """On a terminal, fractions with as many digits as one can compare."""
    from asyncexp.cli import cells, output

    if isinstance(value, float) and output.out().is_terminal:
        return _text(f"{value:.6g}")
    return cells.cell(value)


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style)


class _Stream:
    """A JSON document a line."""

    def __init__(self, _: Sequence[str]) -> None: ...

    def print(self, lines: Sequence[Line]) -> None:
        from asyncexp.cli import output

        for line in lines:
            output.write_json(line, line=True)

    def end(self) -> None: ...


class _Array(_Stream):
    """One JSON document, a line of it each, however many there are."""

    _begun = False

    def print(self, lines: Sequence[Line]) -> None:
        for line in lines:
            sys.stdout.write(",\n" if self._begun else "[\n")
            self._begun = True
            super().print([line])

    def end(self) -> None:
        sys.stdout.write("]\n" if self._begun else "[]\n")


Printer = Columns | _Stream
