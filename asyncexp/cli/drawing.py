"""Figures in letters, as wide as the terminal; without colours or Unicode where it has none."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from asyncexp.cli import output
from asyncexp.cli.figures import Figure, Group, Series, distinct

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

USUAL_COLUMNS = 80
MOST_COLUMNS = 160
ROWS = 16
"""Of a canvas, in lines."""
MOST_BARS = 24
"""Of a histogram, in lines."""
LONGEST_LABEL = 30
STYLES = ("cyan", "magenta", "yellow", "green", "blue", "red", "bright_cyan", "bright_magenta")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SECOND = 1 / 86_400
"""In days."""
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001
_ASCII = {ord("±"): "+-", ord("…"): "~", ord("₂"): "2"}
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a braille character, by row and column."""


@dataclass(frozen=True)
class Paper:
    """What the terminal can show."""

    columns: int
    unicode: bool
    colours: bool

    @classmethod
    def of(cls, console: Console) -> Paper:
        wide = console.width if console.is_terminal else int(os.environ.get("COLUMNS") or USUAL_COLUMNS)
        able = output.in_unicode(console) and os.environ.get("TERM") != "dumb"
        return cls(max(40, min(wide, MOST_COLUMNS)), able, console.color_system is not None and not console.no_color)

    def style(self, place: int) -> str:
        return STYLES[place % len(STYLES)]

    def fit(self, text: str, width: int) -> str:
        """The text in so many columns of the terminal, its middle left out if need be."""
        from rich.cells import cell_len, set_cell_size

        text = " ".join(text.split())
        if not self.unicode:
            text = text.translate(_ASCII).encode("ascii", "replace").decode()
        if cell_len(text) > width:
            dots = "…" if self.unicode else "~"
            text = text[: width // 2] + dots + text[len(text) - (width - width // 2 - 1) :]
        return set_cell_size(text, width)


def draw(figures: Sequence[Figure], title: str | None = None) -> None:
    """Draws them on standard output, one after the other."""
    paper = Paper.of(output.out())
    for number, figure in enumerate(figures):
        if number:
            output.say("")
        for line in lines(figure, paper, title):
            output.out().print(line, no_wrap=True, overflow="crop", crop=True)


def lines(figure: Figure, paper: Paper, title: str | None = None) -> Iterator[Text]:
    """The drawing, line by line."""
    from rich.text import Text

    yield Text(paper.fit(title or _heading(figure), paper.columns).rstrip(), "bold")
    if figure.kind in ("line", "scatter"):
        yield from _canvas(figure, paper)
    elif figure.kind in ("count", "hist", "bar"):
        yield from _bars(_coarser(figure) if figure.kind == "hist" else figure, paper)
    else:
        yield from _ranges(figure, paper)


def _heading(figure: Figure) -> str:
    hue = f", {figure.hue}" if figure.hue and figure.hue != figure.x else ""
    what = f"{figure.y} by {figure.x}{hue}"
    means = ("mean" if figure.kind == "line" else "mean ± 1 std") if figure.shows_means else ""
    told = "median, quartiles and range" if figure.kind == "box" else means
    return f"{what} ({told + '; ' if told else ''}{output.count(figure.rows, 'row')})"


def shown(value: float, *, is_date: bool, span: float) -> str:
    """A number with so many digits as tell it from its neighbours on an axis of this span."""
    if is_date:
        moment = EPOCH + timedelta(days=value)
        if span < 60 * SECOND:
            return moment.isoformat(timespec="milliseconds")[11:]
        return moment.strftime("%Y-%m-%d" if span > 3 else "%m-%d %H:%M" if span > 2000 * SECOND else "%H:%M:%S")
    if value == 0 or not span:
        return f"{value:.4g}"
    digits = max(3, min(12, 3 + math.floor(math.log10(abs(value))) - math.floor(math.log10(span))))
    return f"{value:.{digits}g}"


# --------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class _Row:
    """A line of a drawing that has one line a group."""

    name: str
    hue: str
    place: int
    value: float | Group


def _rows(figure: Figure) -> Iterator[_Row]:
    names = distinct(figure.categories, LONGEST_LABEL) if figure.kind != "hist" else _ranges_of(figure)
    hues = distinct([series.label or "" for series in figure.series], LONGEST_LABEL)
    for number, name in enumerate(names):
        first = True
        for place, series in enumerate(figure.series):
            value = series.groups[number] if series.groups else series.y[number]
            if value is not None and (value != 0 or len(figure.series) == 1):
                yield _Row(name if first else "", hues[place], place, value)
                first = False


def _ranges_of(figure: Figure) -> list[str]:
    edges = figure.series[0].x
    span = edges[1] - edges[0]
    if {high - low for low, high in pairwise(edges)} == {1} and edges[0] % 1 == 0.5:
        return [f"{low + 0.5:.0f}" for low in edges[:-1]]
    names = [shown(edge, is_date=figure.x_is_date, span=span) for edge in edges]
    return [f"{low} to {high}" for low, high in pairwise(names)]


def _coarser(figure: Figure) -> Figure:
    """A histogram with so few ranges that it fits on a screen."""
    bins = len(figure.series[0].y)
    several = math.ceil(bins * len(figure.series) / MOST_BARS)
    if several == 1:
        return figure
    starts = range(0, bins, several)
    series = [
        replace(
            one,
            x=[*(one.x[start] for start in starts), one.x[-1]],
            y=[sum(one.y[start : start + several]) for start in starts],
        )
        for one in figure.series
    ]
    return replace(figure, series=series)


@dataclass(frozen=True)
class _Columns:
    """How wide what is at the side of the drawing."""

    name: int
    hue: int
    room: int
    """For the drawing itself."""

    @classmethod
    def of(cls, rows: Sequence[_Row], tails: Sequence[str], paper: Paper) -> _Columns:
        from rich.cells import cell_len

        name = min(max((cell_len(row.name) for row in rows), default=0), LONGEST_LABEL, paper.columns // 3)
        hue = min(max((cell_len(row.hue) for row in rows), default=0), LONGEST_LABEL, paper.columns // 5)
        tail = max(map(len, tails), default=0)
        return cls(name, hue, max(10, paper.columns - name - hue - tail - (3 if hue else 2)))

    def line(self, row: _Row, drawn: str, tail: str, paper: Paper) -> Text:
        from rich.text import Text

        style = paper.style(row.place)
        hue = [(paper.fit(row.hue, self.hue) + " ", style)] if self.hue else []
        return Text.assemble(paper.fit(row.name, self.name) + " ", *hue, (drawn, style), " " + tail)


def _bars(figure: Figure, paper: Paper) -> Iterator[Text]:
    rows = list(_rows(figure))
    tails = [_tail(row.value, paper, figure) for row in rows]
    columns = _Columns.of(rows, tails, paper)
    values = [_height(row.value) for row in rows]
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 0.0)
    if figure.y_is_date:
        low = min(values) - (max(values) - min(values) or 1.0) / 10
    for row, value, tail in zip(rows, values, tails, strict=True):
        yield columns.line(row, _bar(value, low, high, columns.room, paper), tail, paper)


def _height(value: float | Group) -> float:
    return value.mean if isinstance(value, Group) else value


def _tail(value: float | Group, paper: Paper, figure: Figure) -> str:
    if not isinstance(value, Group):
        return f"{value:,.0f}"
    middle = value.quartiles[1] if figure.kind == "box" else value.mean
    spread = f"{'±' if paper.unicode else '+-'} {value.std:.3g} " if figure.kind != "box" and value.std else ""
    span = 0.0 if not figure.y_is_date else 10.0
    return f"{shown(middle, is_date=figure.y_is_date, span=span)} {'' if figure.y_is_date else spread}n={value.rows:,}"


def _bar(value: float, low: float, high: float, room: int, paper: Paper) -> str:
    """From zero to the value; to an eighth of a column where there are such characters."""
    zero, end = ((each - low) / ((high - low) or 1.0) * room for each in (max(low, min(0.0, high)), value))
    left, right = min(zero, end), max(zero, end)
    if not paper.unicode:
        return (" " * round(left) + "#" * max(round(right) - round(left), int(value != 0))).ljust(room)[:room]
    whole, eighths = divmod(round((right - round(left)) * 8), 8)
    rest = " ▏▎▍▌▋▊▉"[eighths] if eighths else ""
    return (" " * round(left) + "█" * whole + (rest or ("▏" if not whole and value else ""))).ljust(room)[:room]


def _ranges(figure: Figure, paper: Paper) -> Iterator[Text]:
    """Boxes with whiskers, or means with deviations and the values around them."""
    rows = list(_rows(figure))
    tails = [_tail(row.value, paper, figure) for row in rows]
    columns = _Columns.of(rows, tails, paper)
    groups = [row.value for row in rows if isinstance(row.value, Group)]
    draw_one = _box if figure.kind == "box" else _dots
    reach = [each for group in groups for each in (*_reach(group, figure.kind), *group.values)]
    low, high = min(reach), max(reach)
    for row, group, tail in zip(rows, groups, tails, strict=True):
        place = lambda value: round((value - low) / ((high - low) or 1.0) * (columns.room - 1))  # noqa: E731
        yield columns.line(row, draw_one(group, place, columns.room, paper), tail, paper)
    yield _below(low, high, columns.name + columns.hue + (2 if columns.hue else 1), columns.room, figure.y_is_date)


def _reach(group: Group, kind: str) -> tuple[float, float]:
    if kind == "box":
        return group.whiskers
    return group.mean - (group.std or 0.0), group.mean + (group.std or 0.0)


def _box(group: Group, place: Callable[[float], int], room: int, paper: Paper) -> str:
    marks = "─├┤▒┃·" if paper.unicode else "-||=#."
    cells = [" "] * room
    for value in group.values:
        cells[place(value)] = marks[5]
    low, high = map(place, group.whiskers)
    cells[low : high + 1] = marks[0] * (high + 1 - low)
    cells[low], cells[high] = marks[1], marks[2]
    first, middle, last = map(place, group.quartiles)
    cells[first : last + 1] = marks[3] * (last + 1 - first)
    cells[middle] = marks[4]
    return "".join(cells)


def _dots(group: Group, place: Callable[[float], int], room: int, paper: Paper) -> str:
    marks = "─·●" if paper.unicode else "-.O"
    cells = [" "] * room
    low, high = map(place, _reach(group, "points"))
    cells[low : high + 1] = marks[0] * (high + 1 - low)
    for value in group.values:
        cells[place(value)] = marks[1]
    cells[place(group.mean)] = marks[2]
    return "".join(cells)


def _below(low: float, high: float, indent: int, room: int, is_date: bool) -> Text:
    """The ends of an axis and its middle, below it."""
    from rich.text import Text

    ends = [shown(value, is_date=is_date, span=high - low) for value in (low, (low + high) / 2, high)]
    if low == high or sum(map(len, ends)) + 2 > room:
        return Text(" " * indent + f"{ends[0]} to {ends[2]}" if low != high else " " * indent + ends[0], "bright_black")
    half = room // 2
    line = ends[0].ljust(max(len(ends[0]) + 1, half - len(ends[1]) // 2)) + ends[1]
    return Text(" " * indent + line.ljust(room - len(ends[2])) + ends[2], "bright_black")


# ------------------------------------------------------------------------------------------- canvas


class _Dots:
    """A field of dots; each character is two by four of them, and has the colour of what was drawn last in it."""

    def __init__(self, columns: int, rows: int, fine: bool) -> None:
        self.columns, self.rows, self._fine = columns, rows, fine
        self.width, self.height = (columns * 2, rows * 4) if fine else (columns, rows)
        self._bits = [[0] * columns for _ in range(rows)]
        self._owner: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, owner: int) -> None:
        """Sets one; `y` counts from below."""
        y = self.height - 1 - y
        column, row = (x // 2, y // 4) if self._fine else (x, y)
        self._bits[row][column] |= _DOTS[y % 4][x % 2] if self._fine else 1
        self._owner[row][column] = owner

    def line(self, start: tuple[int, int], end: tuple[int, int], owner: int) -> None:
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for step in range(steps + 1):
            x, y = (round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True))
            self.dot(x, y, owner)

    def row(self, number: int, paper: Paper, letters: Sequence[str]) -> Text:
        from rich.text import Text

        line = Text()
        for bits, owner in zip(self._bits[number], self._owner[number], strict=True):
            if owner is None:
                line.append(" ")
            else:
                line.append(chr(0x2800 + bits) if self._fine else letters[owner], paper.style(owner))
        return line


def _canvas(figure: Figure, paper: Paper) -> Iterator[Text]:
    from rich.text import Text

    several = len(figure.series) > 1
    fine = paper.unicode and (paper.colours or not several)
    letters = LETTERS if several else "*"
    xs, ys = _spans(figure)
    labels = [shown(value, is_date=figure.y_is_date, span=ys[1] - ys[0]) for value in (ys[1], sum(ys) / 2, ys[0])]
    side = max(map(len, labels))
    dots = _Dots(paper.columns - side - 2, ROWS, fine)
    for owner, series in enumerate(figure.series):
        _draw_series(figure, series, owner, dots, xs, ys)
    at = {0: labels[0], ROWS // 2: labels[1], ROWS - 1: labels[2]}
    edge = "│" if paper.unicode else "|"
    for number in range(ROWS):
        yield Text.assemble((at.get(number, "").rjust(side) + edge, "bright_black"), dots.row(number, paper, letters))
    low, high = _unscaled(xs[0], figure), _unscaled(xs[1], figure)
    if figure.x_logarithmic:
        ends = f"{low:.4g}", "(logarithmic)", f"{high:.4g}"
        gap = max(1, (dots.columns - sum(map(len, ends))) // 2)
        yield Text(" " * (side + 1) + (" " * gap).join(ends), "bright_black")
    else:
        yield _below(low, high, side + 1, dots.columns, figure.x_is_date)
    if several:
        yield from _legend(figure, paper, letters if not fine else "")


def _spans(figure: Figure) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest, across and upwards."""
    xs = [_scaled(x, figure) for series in figure.series for x in series.x]
    ys = [y for series in figure.series for y in series.y]
    return (min(xs), max(xs)), (min(ys), max(ys))


def _scaled(x: float, figure: Figure) -> float:
    return math.log10(x) if figure.x_logarithmic else x


def _unscaled(x: float, figure: Figure) -> float:
    return 10.0**x if figure.x_logarithmic else x


def _draw_series(
    figure: Figure, series: Series, owner: int, dots: _Dots, xs: tuple[float, float], ys: tuple[float, float]
) -> None:
    def place(value: float, span: tuple[float, float], room: int) -> int:
        return round((value - span[0]) / (span[1] - span[0]) * (room - 1)) if span[1] > span[0] else room // 2

    points = [
        (place(_scaled(x, figure), xs, dots.width), place(y, ys, dots.height))
        for x, y in zip(series.x, series.y, strict=True)
    ]
    for number, point in enumerate(points):
        before = points[number - 1] if figure.kind == "line" and number else point
        dots.line(before, point, owner)


def _legend(figure: Figure, paper: Paper, letters: str) -> Iterator[Text]:
    """The names of the series, in as many lines as they need."""
    from rich.text import Text

    line = Text(f"{figure.hue}:")
    for place, series in enumerate(figure.series):
        mark = letters[place] if letters else "●"
        name = paper.fit(series.label or "", min(LONGEST_LABEL, max(1, len(series.label or ""))))
        entry = Text.assemble("  ", (mark, paper.style(place)), " " + name)
        if line.cell_len + entry.cell_len > paper.columns and line.plain:
            yield line
            line = Text()
        line.append_text(entry)
    yield line
