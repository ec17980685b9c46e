"""Figures as pictures, by matplotlib, without a display."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from asyncexp.cli import files
from asyncexp.cli.codes import Refused
from asyncexp.cli.figures import Figure, Group, Series, distinct, shortened

ENDINGS = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, which people tell apart however they see colours; the best on white come first."""
OF_STATUS = {
    "created": "#999999",
    "running": "#56B4E9",
    "done": "#009E73",
    "error": "#D55E00",
    "paused": "#E69F00",
}
"""An error is never green."""
DASHES = ("-", "--", ":", "-.")
MARKERS = "osD^vPX*"
LONGEST_LABEL = 36
INCHES = 6.4, 4.2
INCHES_PER_CATEGORY = 0.24
INCHES_PER_LETTER = 0.085
MOST_INCHES = 16.0
MOST_BANDS = 5
"""Of more lines the bands would hide each other."""
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a column may be called $x$
    "axes.formatter.useoffset": False,
}


def check(path: Path) -> None:
    """That such a picture can be made, before anything is read.

    Raises:
        Refused: an unknown ending, no such folder, a library that is missing.
    """
    if path.suffix.lower() not in ENDINGS:
        raise Refused(f"{path}: the ending says the format, one of {', '.join(ENDINGS)}")
    files.check_folder(path)
    files.needed("matplotlib", "a picture", "plot")


def picture(figures: Sequence[Figure], path: Path, title: str | None = None) -> None:
    """Writes the figures, one below the other, in one step in place of the file that was there."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = _sheet(figures, title)
        with files.replacing(path) as temporary:
            drawn.savefig(temporary, format=path.suffix[1:].lower(), dpi=DOTS_PER_INCH, bbox_inches="tight")
    if any("missing from font" in str(each.message) for each in caught):
        figures[0].remarks.append("some letters are not in the picture's font, and boxes stand for them")


def _sheet(figures: Sequence[Figure], title: str | None) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    heights = [_height(figure) for figure in figures]
    sheet = Sheet(figsize=(max(map(_width, figures)), sum(heights)), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.subplots(len(figures), 1, squeeze=False, height_ratios=heights)
    for (axis,), figure in zip(axes, figures, strict=True):
        _draw(axis, figure)
    if title:
        sheet.suptitle(title, fontweight="bold")
    return sheet


def _height(figure: Figure) -> float:
    if not _sideways(figure):
        return INCHES[1]
    high = 1.0 + INCHES_PER_CATEGORY * len(figure.categories) * max(1.0, _lanes(figure) * 0.5)
    return min(MOST_INCHES, max(INCHES[1] * 0.6, high))


def _width(figure: Figure) -> float:
    """With room for names at the side and for the legend."""
    names = max(map(_letters, figure.categories), default=0) if _sideways(figure) else 0
    labels = max(_letters(each) for series in figure.series for each in (series.label or "", figure.hue or ""))
    return (
        INCHES[0] + max(0, names - 8) * INCHES_PER_LETTER + (labels + 4) * INCHES_PER_LETTER * (len(figure.series) > 1)
    )


def _letters(name: str) -> int:
    return len(shortened(name, LONGEST_LABEL))


def _sideways(figure: Figure) -> bool:
    """Whether the names of categories would not fit below the axis, so that they stand at its side."""
    letters = sum(max(4, _letters(name)) for name in figure.categories)
    return letters > 60 or len(figure.categories) * _lanes(figure) > 32


def _lanes(figure: Figure) -> int:
    return 1 if figure.kind == "count" and _stacked(figure) else len(figure.series)


def _stacked(figure: Figure) -> bool:
    return len(figure.series) > 1


# ------------------------------------------------------------------------------------------ drawing


def _draw(axis: Any, figure: Figure) -> None:
    {"hist": _histogram, "count": _counts, "line": _lines, "scatter": _scatter}.get(figure.kind, _groups)(axis, figure)
    if len(figure.series) > 1:
        _legend(axis, figure)


def _drawn(figure: Figure) -> Iterator[tuple[Series, Any, str | None]]:
    """The series with their colours and their names in the legend."""
    yield from zip(figure.series, _colours(figure), _labels(figure), strict=True)


def _colours(figure: Figure) -> list[Any]:
    """One for each series: a scale of light where the hue has an order, else colours that are told apart."""
    number = len(figure.series)
    if {series.label for series in figure.series} <= OF_STATUS.keys():
        return [OF_STATUS[series.label or ""] for series in figure.series]
    ordered = number > 2 and figure.hue_is_ordered
    beside = number > len(COLOURS) and figure.kind not in ("line", "scatter")  # which have dashes and markers
    if not ordered and not beside:
        return [COLOURS[place % len(COLOURS)] for place in range(number)]
    import matplotlib as mpl

    scale = mpl.colormaps["viridis"]
    return [scale(0.9 * place / (number - 1)) for place in range(number)]


def _legend(axis: Any, figure: Figure) -> None:
    axis.legend(title=figure.hue, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, alignment="left")


def _labels(figure: Figure) -> list[str | None]:
    if figure.series[0].label is None:
        return [None]
    # matplotlib leaves out of its legends what begins with an underscore.
    return ["\u200b" + name for name in distinct([series.label or "" for series in figure.series], LONGEST_LABEL)]


def _counts(axis: Any, figure: Figure) -> None:
    import numpy as np

    below = np.zeros(len(figure.categories))
    sideways = _sideways(figure)
    for series, colour, label in _drawn(figure):
        places = range(len(figure.categories))
        if sideways:
            axis.barh(places, series.y, left=below, color=colour, label=label, height=0.75)
        else:
            axis.bar(places, series.y, bottom=below, color=colour, label=label, width=0.75)
        below += np.array(series.y)
    _name_categories(axis, figure, sideways)


def _name_categories(axis: Any, figure: Figure, sideways: bool) -> None:
    names = distinct(figure.categories, LONGEST_LABEL)
    along, across = (axis.yaxis, axis.xaxis) if sideways else (axis.xaxis, axis.yaxis)
    along.set_ticks(range(len(names)), names)
    along.set_tick_params(length=0)
    along.grid(visible=False)
    along.set_label_text(figure.x or "")
    across.set_label_text(_y_label(figure))
    if sideways:
        axis.set_ylim(len(names) - 0.4, -0.6)
    else:
        axis.set_xlim(-0.6, len(names) - 0.4)
    if figure.kind == "count":
        _whole_numbers(across)
    elif figure.y_is_date:
        _dates(across)


def _y_label(figure: Figure) -> str:
    if not figure.shows_means:
        return figure.y
    spread = {"line": ", band: ± 1 std" if _has_bands(figure) else ""}.get(figure.kind, ", bar: ± 1 std")
    return f"{figure.y} (mean{spread})"


def _has_bands(figure: Figure) -> bool:
    return len(figure.series) <= MOST_BANDS


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _dates(axis: Any) -> None:
    from matplotlib import dates

    untyped: Any = dates
    locator = untyped.AutoDateLocator(maxticks=8)
    axis.set_major_locator(locator)
    axis.set_major_formatter(untyped.ConciseDateFormatter(locator))


def _groups(axis: Any, figure: Figure) -> None:
    sideways = _sideways(figure)
    draw: Callable[..., None] = {"box": _boxes, "points": _dots, "bar": _bars}[figure.kind]
    lanes = len(figure.series)
    width = 0.8 / lanes
    for lane, (series, colour, label) in enumerate(_drawn(figure)):
        shift = (lane - (lanes - 1) / 2) * width
        found = [(place + shift, group) for place, group in enumerate(series.groups) if group is not None]
        if found:
            draw(axis, found, width * 0.8, colour, sideways)
        axis.scatter([], [], marker="s", color=[colour], label=label)
    _name_categories(axis, figure, sideways)


def _boxes(axis: Any, found: list[tuple[float, Group]], width: float, colour: Any, sideways: bool) -> None:
    boxes = [
        {"q1": one.quartiles[0], "med": one.quartiles[1], "q3": one.quartiles[2], "whislo": one.whiskers[0],
         "whishi": one.whiskers[1], "fliers": one.values, "mean": one.mean}
        for _, one in found
    ]  # fmt: skip
    axis.bxp(
        boxes,
        positions=[place for place, _ in found],
        widths=width,
        orientation="horizontal" if sideways else "vertical",
        manage_ticks=False,
        patch_artist=True,
        boxprops={"facecolor": _light(colour), "edgecolor": colour},
        medianprops={"color": colour, "linewidth": 2},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        flierprops={"marker": ".", "markersize": 5, "markerfacecolor": colour, "markeredgecolor": "none", "alpha": 0.5},
    )


def _light(colour: Any) -> Any:
    from matplotlib.colors import to_rgb

    return tuple(0.35 * part + 0.65 for part in to_rgb(colour))


def _dots(axis: Any, found: list[tuple[float, Group]], width: float, colour: Any, sideways: bool) -> None:
    for place, group in found:
        places = _spread_out(place, len(group.values), width)
        pairs = (group.values, places) if sideways else (places, group.values)
        axis.scatter(*pairs, s=12, color=[colour], alpha=0.35, linewidths=0)
    _error_bars(axis, found, colour, sideways, "o")


def _spread_out(place: float, number: int, width: float) -> list[float]:
    """Side by side in a pattern that repeats, so that equal values do not hide each other."""
    return [place + width * (((index * 0.618034) % 1) - 0.5) * 0.7 for index in range(number)]


def _bars(axis: Any, found: list[tuple[float, Group]], width: float, colour: Any, sideways: bool) -> None:
    places, means = [place for place, _ in found], [group.mean for _, group in found]
    (axis.barh if sideways else axis.bar)(places, means, width, color=colour, alpha=0.8)
    _error_bars(axis, found, "#333333", sideways, "")


def _error_bars(axis: Any, found: list[tuple[float, Group]], colour: Any, sideways: bool, marker: str) -> None:
    if all(group.std is None for _, group in found) and not marker:
        return
    places, means = [place for place, _ in found], [group.mean for _, group in found]
    stds = [group.std or 0.0 for _, group in found]
    x, y, errors = (means, places, {"xerr": stds}) if sideways else (places, means, {"yerr": stds})
    axis.errorbar(x, y, **errors, fmt=marker or "none", color=colour, ecolor=colour, capsize=3, markersize=5, zorder=3)


def _histogram(axis: Any, figure: Figure) -> None:
    for series, colour, label in _drawn(figure):
        alone = len(figure.series) == 1
        axis.stairs(series.y, series.x, fill=True, color=colour, alpha=0.85 if alone else 0.2)
        axis.stairs(series.y, series.x, color="white" if alone else colour, linewidth=0.6 if alone else 1.6)
        axis.plot([], [], color=colour, label=label)
    axis.set_ylim(0, None)
    axis.grid(visible=False, axis="x")
    _whole_numbers(axis.yaxis)
    _name_axes(axis, figure)


def _name_axes(axis: Any, figure: Figure) -> None:
    axis.set_xlabel(figure.x or "")
    axis.set_ylabel(_y_label(figure))
    if figure.x_logarithmic:
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
    if figure.x_is_date:
        _dates(axis.xaxis)
        _widen([x for series in figure.series for x in series.x], axis.set_xlim)
    if figure.y_is_date:
        _dates(axis.yaxis)
        _widen([y for series in figure.series for y in series.y], axis.set_ylim)


def _widen(days: list[float], limits: Callable[..., object]) -> None:
    """An hour around a moment that is the only one: no axis of dates is shorter."""
    if min(days) == max(days):
        limits(days[0] - 1 / 24, days[0] + 1 / 24)


def _lines(axis: Any, figure: Figure) -> None:
    for place, (series, colour, label) in enumerate(_drawn(figure)):
        few = len(series.x) <= 30
        dash = DASHES[place // len(COLOURS) % len(DASHES)]
        marker = MARKERS[place % len(MARKERS)] if few else ""
        axis.plot(series.x, series.y, dash, marker=marker, markersize=4, color=colour, label=label)
        if series.spread is not None and _has_bands(figure):
            low = [y - spread for y, spread in zip(series.y, series.spread, strict=True)]
            high = [y + spread for y, spread in zip(series.y, series.spread, strict=True)]
            axis.fill_between(series.x, low, high, color=colour, alpha=0.15, linewidth=0)
    _name_axes(axis, figure)


def _scatter(axis: Any, figure: Figure) -> None:
    total = sum(len(series.x) for series in figure.series)
    size = min(24.0, max(2.0, 240 / math.sqrt(total + 1)))
    alpha = min(0.8, max(0.15, 30 / math.sqrt(total + 1)))
    for place, (series, colour, label) in enumerate(_drawn(figure)):
        marker = MARKERS[place % len(MARKERS)]
        axis.scatter(
            series.x, series.y, s=size, color=[colour], alpha=alpha, linewidths=0, marker=marker, rasterized=True
        )
        axis.scatter([], [], s=24, color=[colour], marker=marker, label=label)
    _name_axes(axis, figure)
