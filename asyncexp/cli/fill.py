"""`fill`: rows for the experiments, from the configuration or from a file; first told, if wanted, and not made."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from asyncexp.cli import cells, options, output
from asyncexp.cli.command import command
from asyncexp.cli.place import Place
from asyncexp.cli.row_files import read
from asyncexp.errors import EmptyFillDatabaseCallError, ParameterCombinationError

if TYPE_CHECKING:
    from asyncexp import Experimenter
    from asyncexp.store.fill import Filled, Preview

PANEL = "Begin"
SHOWN = 5
MANY = 20_000
"""From so many rows on a bar shows how far it is."""

Given = Sequence[Mapping[str, Any]] | None
"""Rows from a file; None: those that the configuration describes."""


@command(PANEL)
async def fill(
    place: Place,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows from a file in place of the configuration's values: .csv, .json, .jsonl or .parquet, with a "
            "column for each keyfield. In a CSV an empty cell is NULL.",
        ),
    ] = None,
    dry_run: options.DryRun = False,
    create_database: options.CreateDatabase = False,
) -> None:
    """Makes the tables, and a row for each combination of parameters that has none yet.

    \b
    Examples:
      asyncexp fill --dry-run
      asyncexp fill
      asyncexp fill --rows combinations.csv
    """
    given = None if rows is None else read(rows, place.schema.keyfields)
    async with place.open(new=True, patient=True) as experimenter:
        with _naming(rows):
            if dry_run:
                preview = await experimenter.preview_fill(SHOWN, rows=given, create_database=create_database)
                _show_preview(place, preview)
            else:
                _show_filled(place, await _fill(experimenter, given, create_database))


async def _fill(experimenter: Experimenter, given: Given, create_database: bool) -> Filled:
    if given is not None:  # all are looked at before the first is written
        await experimenter.preview_fill(0, rows=given, create_database=create_database)
    if create_database:
        await experimenter.create_table(create_database=True)
    with _Bar(_expected(experimenter) if given is None else len(given)) as progress:
        if given is not None:
            return await experimenter.fill_table_with_rows(given, progress=progress)
        return await experimenter.fill_table_from_config(progress=progress)


@contextmanager
def _naming(file: Path | None) -> Iterator[None]:
    """What is wrong with a row is told with its file."""
    try:
        yield
    except (ParameterCombinationError, EmptyFillDatabaseCallError) as wrong:
        if file is None:
            raise
        counted = re.sub(r"^row (\d+)", lambda row: f"row {int(row[1]) + 1}", str(wrong))  # the first one is row 1
        raise type(wrong)(f"{file}: {counted}") from None


def _expected(experimenter: Experimenter) -> int:
    keyfields = experimenter.configuration.database.table.keyfields
    return math.prod(1 if key.values is None else len(key.values) for key in keyfields)


class _Bar:
    """Hears how far a fill is, and shows it on a terminal where it is going to take a while."""

    def __init__(self, expected: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("Rows"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        shown = expected >= MANY and output.err().is_terminal
        self._bar = Progress(*columns, console=output.err(), transient=True, disable=not shown)
        self._task = self._bar.add_task("", total=expected)
        self._added = 0

    def __call__(self, filled: Filled) -> None:
        self._added = filled.added
        self._bar.update(self._task, completed=filled.added + filled.existed)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        from asyncio import CancelledError

        self._bar.stop()
        if kind is CancelledError:
            rows = output.count(self._added, "row")
            output.note(f"Stopped behind {rows} and those under way, which stay; the same command adds the rest.")


def _show_filled(place: Place, filled: Filled) -> None:
    if place.json:
        output.write_json(filled)
        return
    table = place.configuration.database.table.name
    words = f"{output.count(filled.added, 'row')} added to {table}"
    if not filled.added:
        words = f"Nothing to add to {table}: {_exist(filled.existed, filled.existed)}"
    elif filled.existed:
        words += f"; {filled.existed:,} existed already"
    output.say(output.mark(True), words)


def _exist(existing: int, rows: int) -> str:
    """`1 of 3 rows exists already`."""
    which = output.count(rows, "row") if existing == rows else f"{existing:,} of {output.count(rows, 'row')}"
    return f"{which} {'exists' if existing == 1 else 'exist'} already"


def _show_preview(place: Place, preview: Preview) -> None:
    if place.json:
        output.write_json(preview)
        return
    words = f"{output.count(preview.rows - preview.existing, 'row')} would be added"
    existing = f", {_exist(preview.existing, preview.rows)}" if preview.existing else ""
    output.say(f"{words}{existing}. Nothing was written.")
    if preview.first:
        output.say()
        _show_rows(place, preview)


def _show_rows(place: Place, preview: Preview) -> None:
    names = place.schema.key_names
    numbers = [column.name for column in place.schema.keyfields if _is_number(column.type)]
    output.grid(names, [[cells.cell(row[name]) for name in names] for row in preview.first], right=numbers)
    if (more := preview.rows - preview.existing - len(preview.first)) > 0:
        output.say(f"… and {more:,} more")


def _is_number(type_: Any) -> bool:
    return getattr(type_, "name", "") in ("INT", "BIGINT", "NUMERIC", "DOUBLE", "FLOAT")
