"""Upkeep of the tables: `create`, `migrate`, `delete-table`; and `schema`, for editors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from asyncexp.cli import options, output
from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.command import command
from asyncexp.cli.files import write_files
from asyncexp.cli.place import Place

PANEL = "Upkeep"


@command(PANEL)
async def create(
    place: Place,
    create_database: options.CreateDatabase = False,
) -> None:
    """Makes the tables without any rows, for programs that add their own; `fill` makes them, too.

    \b
    Example:
      asyncexp create --create-database
    """
    async with place.open(new=True, patient=True) as experimenter:
        await experimenter.create_table(create_database=create_database)
    if place.json:
        output.write_json({"table": place.schema.name, "tables": [table.name for table in place.schema.tables]})
    else:
        output.say(output.mark(True), f"The tables of {place.schema.name} are there")


@command(PANEL)
async def migrate(
    place: Place,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
) -> int | None:
    """Adds to the tables what the configuration has and they lack; takes over tables of PyExperimenter.

    Nothing is dropped or retyped. Rows that are there have NULL in new result fields, and the `default:` of new
    keyfields.

    \b
    Examples:
      asyncexp migrate --dry-run
      asyncexp migrate --yes
    """
    async with place.open(new=True, patient=True) as experimenter:
        lacking = await experimenter.preview_migration()
        if lacking and not dry_run:
            if not place.json:
                _show(place, lacking, "would be added")
            if not output.asked("Add this to the tables?", yes=yes):
                output.note("Nothing was changed.")
                return NOT_ALL_WELL
            await experimenter.migrate()
    _tell(place, lacking, dry_run)
    return None


def _tell(place: Place, lacking: Mapping[str, Sequence[str]], dry_run: bool) -> None:
    if place.json:
        output.write_json({"migrated": bool(lacking) and not dry_run, "lacking": lacking})
    elif not lacking:
        output.say(output.mark(True), f"The tables of {place.schema.name} lack nothing")
    elif dry_run:
        _show(place, lacking, "would be added")
        output.say("Nothing was changed.")
    else:
        output.say(output.mark(True), "Added")


def _show(place: Place, lacking: Mapping[str, Sequence[str]], what: str) -> None:
    """A table that would be made is told by its name alone."""
    whole = {table.name: [column.name for column in table.columns] for table in place.schema.tables}
    lines = [
        (name, "the table, which is missing" if list(columns) == whole.get(name) else ", ".join(columns))
        for name, columns in lacking.items()
    ]
    output.grid(("table", what), lines)


@command(PANEL, name="delete-table")
async def delete_table(
    place: Place,
    yes: options.Yes = False,
) -> int | None:
    """Deletes the table with all that belongs to it: rows, results, logs, workers. Nothing brings it back.

    It asks for the table's name to be typed. Single rows are deleted by `asyncexp delete`.

    \b
    Example:
      asyncexp delete-table --table old_study
    """
    name = place.schema.name
    async with place.open() as experimenter:
        counts = await experimenter.counts()
        if not yes and not _typed(name, sum(counts.values()), counts["running"]):
            output.note("Nothing was deleted.")
            return NOT_ALL_WELL
        await experimenter.delete_table()
    if place.json:
        output.write_json({"table": name, "rows": sum(counts.values())})
    else:
        output.say(output.mark(True), f"{name} deleted, with {output.count(sum(counts.values()), 'row')}")
    return None


def _typed(name: str, rows: int, running: int) -> bool:
    """Whether somebody types the table's name."""
    what = f"{name} and its {output.count(rows, 'row')} will be deleted, with results and logs"
    if not sys.stdin.isatty():
        raise Refused(f"{what}. Nobody is here to be asked: add --yes")
    output.note(f"{what}{f'; {running:,} of them run now' if running else ''}.")
    return output.answer("Type the table's name to delete it") == name


@command(PANEL, without=("config", "credentials", "table", "database", "json"))
def schema(
    place: Place,  # noqa: ARG001  (as all commands have it)
    file: Annotated[Path | None, typer.Argument(help="Write it here; by default to standard output.")] = None,
) -> int | None:
    """The JSON schema of the configuration, by which editors complete and check it.

    In VS Code with the extension YAML (redhat.vscode-yaml), and in other editors with yaml-language-server, the
    first line of the configuration names the schema; `asyncexp init` writes both.

    \b
    Examples:
      asyncexp schema config/experiment_configuration.schema.json
      # and as the first line of config/experiment_configuration.yml:
      # yaml-language-server: $schema=experiment_configuration.schema.json
    """
    from asyncexp.config import editors

    if file is None:
        typer.echo(editors.text(), nl=False)
        return None
    if file.exists() and not _is_schema(file):
        raise Refused(f"{file} is there, and no schema of a configuration: nothing was written", NOT_ALL_WELL)
    write_files(Path(), {str(file): editors.text()})
    output.say(output.mark(True), f"{file} written")
    return None


def _is_schema(file: Path) -> bool:
    """Whether it is one that was written before, perhaps by another version."""
    from asyncexp.config.editors import TITLE

    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("title") == TITLE
