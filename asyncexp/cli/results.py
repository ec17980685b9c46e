"""Commands that take results out: `export`, `plot`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from asyncexp.cli import complete, formats, options, output, pictures
from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.command import command
from asyncexp.cli.drawing import draw
from asyncexp.cli.figures import KINDS
from asyncexp.cli.figures import figure as figure_of
from asyncexp.cli.formats import STDOUT, Content
from asyncexp.cli.groups import STATISTICS, Wanted, summarised
from asyncexp.cli.place import Place
from asyncexp.cli.source import Source
from asyncexp.errors import unknown

if TYPE_CHECKING:
    import pandas as pd

    from asyncexp.cli.figures import Figure, Kind

PANEL = "Results"

Names = list[str] | None


@dataclass(frozen=True)
class Rows:
    """Which rows results are taken of."""

    where: options.Where = None
    status: options.Statuses = None
    log: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A log table, each line with its keyfields.",
            autocompletion=complete.logtables,
            rich_help_panel=options.WHICH,
        ),
    ] = None
    all_attempts: options.AllAttempts = False
    energy: Annotated[
        bool,
        typer.Option(
            "--energy", help="The energy of the experiments, with their keyfields.", rich_help_panel=options.WHICH
        ),
    ] = False

    def of(self, place: Place) -> Source:
        return Source(
            place, self.log, self.energy, tuple(self.where or ()), tuple(self.status or ()), self.all_attempts
        )


def _columns(help: str) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        metavar="A,B", help=help, rich_help_panel="Groups", autocompletion=complete.results
    )
    return found


@dataclass(frozen=True)
class Groups:
    """Groups of rows, and what is told of each; without any, all rows are."""

    group_by: Annotated[Names, _columns("One row for each combination of these.")] = None
    mean: Annotated[Names, _columns("The mean in each group; likewise the others.")] = None
    std: Annotated[Names, _columns("The standard deviation (of a sample).")] = None
    median: Annotated[Names, _columns("The median.")] = None
    min: Annotated[Names, _columns("The least.")] = None
    max: Annotated[Names, _columns("The greatest.")] = None
    sum: Annotated[Names, _columns("The sum.")] = None
    count: Annotated[bool, typer.Option("--count", help="How many rows.", rich_help_panel="Groups")] = False
    decimals: Annotated[
        int | None, typer.Option(min=0, max=15, metavar="N", help="In .tex and .md.", rich_help_panel="Groups")
    ] = None

    def of(self, source: Source) -> Wanted:
        """What is told of each, the columns in the order in which they were first named."""
        told: dict[str, list[str]] = {}
        for statistic in STATISTICS:
            for name in source.known(f"--{statistic}", getattr(self, statistic)):
                told.setdefault(name, []).append(statistic)
        return Wanted(tuple(source.known("--group-by", self.group_by)), told, self.count)


@command(PANEL)
async def export(
    place: Place,
    file: Annotated[str, typer.Argument(help=".csv, .parquet, .xlsx, .json, .tex, .md; - is CSV on stdout.")],
    rows: Rows,
    groups: Groups,
    columns: Annotated[
        Names, typer.Option(metavar="A,B", help="These columns, in this order.", autocompletion=complete.results)
    ] = None,
    bookkeeping: Annotated[
        bool, typer.Option("--bookkeeping", help="Also the columns that begin with an underscore.")
    ] = False,
) -> None:
    """Writes the table, a log table or groups of rows to a file, in the format that its ending says.

    A file that is there is replaced, in one step. "duration", seconds from start to end, can be named like a column.

    \b
    Examples:
      asyncexp export results.csv
      asyncexp export done.parquet --status done --where kernel=rbf
      asyncexp export table.tex --group-by kernel --mean accuracy --std accuracy
      asyncexp export steps.csv --log steps
      asyncexp export - --columns ID,accuracy | head
    """
    formats.check(file)
    source = rows.of(place)
    wanted = groups.of(source)
    content = await _content(source, wanted, _chosen(source, columns, bookkeeping, wanted))
    content.decimals = groups.decimals
    with output.interrupted_at_once():
        formats.write(content, file, as_json=place.json)
    _told(place, file, content)


def _chosen(source: Source, columns: Names, bookkeeping: bool, wanted: Wanted) -> list[str]:
    if wanted and (columns or bookkeeping):
        raise Refused("--columns and --bookkeeping are for rows; of groups name what to tell: --mean, --std, …")
    named = source.known("--columns", columns)
    if named:
        return named
    return [name for name in source.types if name in source.shown or (bookkeeping and name.startswith("_"))]


async def _content(source: Source, wanted: Wanted, columns: list[str]) -> Content:
    frame = await source.read([*wanted.by, *wanted.statistics] if wanted else columns)
    if not wanted:
        of_json = frozenset(name for name, type_ in source.types.items() if type_.name == "JSON")
        return Content(frame[columns], of_json, exact=frozenset(source.place.schema.key_names))
    content = Content(summarised(frame, wanted), spreads=wanted.spreads, exact=frozenset(wanted.by))
    content.remarks += _left_out(frame, wanted)
    return content


def _left_out(frame: pd.DataFrame, wanted: Wanted) -> list[str]:
    missing = {name: int(frame[name].isna().sum()) for name in wanted.statistics}
    return [
        f"{name}: {output.count(number, 'row')} without a value left out" for name, number in missing.items() if number
    ]


def _told(place: Place, file: str, content: Content) -> None:
    """What was written; beside the rows themselves, if they went to standard output."""
    for remark in content.remarks:
        output.note(remark)
    rows, columns = content.frame.shape
    if not rows:
        output.note("There is no such row: what was written is empty.")
    if file == STDOUT:
        return
    if place.json:
        output.write_json({"file": file, "rows": rows, "columns": columns})
    else:
        output.say(f"{file}: {output.count(rows, 'row')}, {output.count(columns, 'column')}")


# --------------------------------------------------------------------------------------------- plot


@command(PANEL)
async def plot(
    place: Place,
    y: Annotated[
        list[str],
        typer.Argument(
            metavar="COLUMN...", help="What is drawn; of several one plot each.", autocompletion=complete.results
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option("--by", "-b", metavar="COLUMN", help="Over this column.", autocompletion=complete.results),
    ] = None,
    hue: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="A colour for each value of this one.", autocompletion=complete.results),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="box, points, bar, line, scatter, hist or count.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help=".png, .svg or .pdf, in place of the terminal.")
    ] = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Above the picture.")] = None,
    *,
    rows: Rows,
) -> None:
    """Draws a column: in the terminal, or as a picture.

    Of experiments those that are done are drawn, unless --status says otherwise (all: every one).
    Numbers are shown as a histogram, by a column of names as boxes or points, by one of numbers as a line of means
    with a band of one standard deviation, or as points; names are counted.

    \b
    Examples:
      asyncexp plot accuracy --by kernel --hue dataset
      asyncexp plot accuracy --by C -o accuracy.pdf
      asyncexp plot status --by kernel
      asyncexp plot loss --log steps --by step --hue kernel
      asyncexp plot energy_consumed_kw --energy --by kernel
    """
    if out is not None:
        pictures.check(out)
    chosen = _kind(kind)
    source = rows.of(place)
    columns = source.known("plot", y)
    over, colour = _one(source, "--by", by), _one(source, "--hue", hue)
    figures = await _figures(_usual(source, [*columns, over, colour]), columns, over, colour, chosen)
    if out is not None:
        with output.interrupted_at_once():
            pictures.picture(figures, out, title)
    _shown(place, figures, out, title)


def _one(source: Source, option: str, text: str | None) -> str | None:
    found = source.known(option, [text]) if text else []
    if len(found) > 1:
        raise Refused(f"{option} takes one column, not {len(found)}: {text}")
    return found[0] if found else None


def _kind(word: str | None) -> Kind | None:
    if word is None or word in KINDS:
        return cast("Kind | None", word)
    raise Refused(unknown("--kind: no kind", word, KINDS))


def _usual(source: Source, columns: list[str | None]) -> Source:
    """Only experiments that are done, if nobody says otherwise and it is not how they stand that is asked for."""
    stands = {"status", "error", "creation_date"} & set(columns)
    told = source.status or any(text.partition("=")[0].strip() == "status" for text in source.where)
    return source if told or source.log is not None or stands else replace(source, status=("done",))


async def _figures(
    source: Source, columns: list[str], by: str | None, hue: str | None, kind: Kind | None
) -> list[Figure]:
    frame = await source.read([*columns, *filter(None, [by, hue])])
    if frame.empty and source.status == ("done",):
        raise Refused("no experiment that is done is there to draw; --status all draws every one", NOT_ALL_WELL)
    return [figure_of(frame, y, by, hue, kind, over_time=source.log is not None) for y in columns]


def _shown(place: Place, figures: list[Figure], out: Path | None, title: str | None) -> None:
    for remark in dict.fromkeys(remark for figure in figures for remark in figure.remarks):
        output.note(remark)
    if place.json:
        rows = [{"kind": figure.kind, "rows": figure.rows} for figure in figures]
        output.write_json({"file": out, "plots": rows} if out is not None else figures)
    elif out is not None:
        output.say(f"{out}: " + "; ".join(_described(figure) for figure in figures))
    else:
        draw(figures, title)


def _described(figure: Figure) -> str:
    what = f"{figure.y} by {figure.x}" if figure.kind not in ("hist", "count") else figure.x
    return f"{what}, {figure.kind}, {output.count(figure.rows, 'row')}"
