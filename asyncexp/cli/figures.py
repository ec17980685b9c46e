"""What a plot shows, as numbers: which kind suits the columns, groups, means and spreads; nothing is drawn here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.groups import hashable
from asyncexp.cli.output import count

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["box", "points", "bar", "line", "scatter", "hist", "count"]
KINDS: tuple[str, ...] = get_args(Kind)
OF_CATEGORIES = ("box", "points", "bar")
"""Numbers by category."""

MOST_CATEGORIES = 60
MOST_HUES = 12
FEW_VALUES = 10
"""So many values of a group are shown one by one; more as a box."""
MOST_POINTS = 20_000
"""Of a scatter; of more a sample is drawn."""
MOST_STEPS = 500
"""Of a line; more are put together to as many means."""
MOST_BINS = 40
MOST_FLIERS = 100
LOGARITHMIC = 1_000
"""An axis of values that are spread over as many times the least of them is logarithmic."""
NOTHING = "(none)"
_SEED = 7
_UNITS = {
    "duration": "duration (s)",
    "duration_seconds": "duration (s)",
    "emissions_kg": "emissions (kg CO₂eq)",
    "emissions_rate_kg_sec": "emissions (kg CO₂eq/s)",
    "energy_consumed_kw": "energy (kWh)",
    **{f"{part}_energy_kw": f"{part.upper()} energy (kWh)" for part in ("cpu", "gpu", "ram")},
    **{f"{part}_power_watt": f"{part.upper()} power (W)" for part in ("cpu", "gpu", "ram")},
}
"""Columns that asyncexp itself writes, with their units."""


@dataclass(frozen=True)
class Group:
    """Values of one category."""

    rows: int
    mean: float
    std: float | None
    """None: there is one value only, or they are yes and no."""
    quartiles: tuple[float, float, float]
    whiskers: tuple[float, float]
    values: tuple[float, ...]
    """All of them, if they are few; else those beyond the whiskers."""


@dataclass
class Series:
    """What one value of the hue shows, or all there is."""

    label: str | None
    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)
    spread: list[float] | None = None
    """Standard deviations around `y`, where values repeat."""
    groups: list[Group | None] = field(default_factory=list)
    """By category."""


@dataclass
class Figure:
    """One plot."""

    kind: Kind
    y: str
    x: str | None
    hue: str | None
    series: list[Series]
    rows: int
    categories: list[str] = field(default_factory=list)
    x_is_date: bool = False
    y_is_date: bool = False
    x_logarithmic: bool = False
    hue_is_ordered: bool = False
    remarks: list[str] = field(default_factory=list)

    @property
    def shows_means(self) -> bool:
        """Of several values, so that there are deviations."""
        groups = [group for one in self.series for group in one.groups if group]
        spread = any(one.spread for one in self.series) or any(group.std is not None for group in groups)
        return spread and self.kind != "box"


# ------------------------------------------------------------------------------------- from rows


def figure(
    frame: pd.DataFrame, y: str, by: str | None, hue: str | None, kind: Kind | None, *, over_time: bool = False
) -> Figure:
    """The plot of a column.

    Args:
        frame: rows with these columns.
        kind: None: as suits the columns.
        over_time: the rows are steps of something that goes on, so that a line joins them.

    Raises:
        Refused: there is nothing to draw, or not as this kind.
    """
    if frame.empty:
        raise Refused(f"{y}: there are no rows to draw", NOT_ALL_WELL)
    remarks: list[str] = []
    rows = _present(frame, y, remarks)
    hue = None if hue in (y, by) else hue
    sort = _sort(rows[y])
    if sort == "category" or kind == "count":
        return _counts(rows, y, by, hue, kind, remarks)
    if by is None:
        return _histogram(rows, y, hue, kind, remarks)
    if _sort(rows[by]) in ("category", "boolean") or kind in OF_CATEGORIES:
        return _by_category(rows, y, by, hue, kind, remarks)
    return _by_number(rows, y, by, hue, kind, remarks, over_time=over_time)


def _present(frame: pd.DataFrame, y: str, remarks: list[str]) -> pd.DataFrame:
    rows = frame[frame[y].notna()]
    if rows.empty:
        raise Refused(f"{y}: none of {count(len(frame), 'row')} has a value", NOT_ALL_WELL)
    if len(rows) < len(frame):
        remarks.append(f"{count(len(frame) - len(rows), 'row')} without a value of {y} left out")
    return rows


def _sort(column: pd.Series[Any]) -> Literal["number", "date", "boolean", "category"]:
    kind = column.dtype.kind
    if kind == "b":
        return "boolean"
    return "number" if kind in "iuf" else "date" if kind == "M" else "category"


def _numbers(column: pd.Series[Any]) -> Any:
    """As floats; dates as days since 1970."""
    if column.dtype.kind == "M":
        return column.astype("datetime64[us]").astype("int64").where(column.notna()) / 86_400e6
    return column.astype("Float64").astype("float64")


def named(column: str) -> str:
    """A column's name with its unit, if it is known."""
    return _UNITS.get(column, column)


def _must_be(kind: Kind | None, able: Sequence[str], what: str) -> None:
    if kind is not None and kind not in able:
        raise Refused(f"--kind {kind}: {what} is drawn as {' or '.join(able)}")


# ------------------------------------------------------------------------------------- categories


def _categories(column: pd.Series[Any], most: int, remarks: list[str], why: str = "") -> tuple[list[str], Any]:
    """The names of the categories in order, and the number of each row's own (-1: not shown)."""
    names = hashable(column).map(_name, na_action=None)
    found = names.value_counts()
    if len(found) > most:
        remarks.append(f"{most} of the {len(found):,} values of {column.name} are shown, those with most rows{why}")
    order = sorted(found.index[:most], key=_order)
    places = {name: place for place, name in enumerate(order)}
    return order, names.map(places).fillna(-1).astype("int64")


def _name(value: Any) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value != value:
        return NOTHING
    return f"{value:.12g}" if isinstance(value, float) else str(value) or "''"


def _order(name: str) -> Any:
    """Statuses as they follow each other, numbers by size, words by letter with the numbers in them by size."""
    from asyncexp.store.study import STATUSES

    if name in STATUSES:
        return 0, STATUSES.index(name), []
    try:
        return 1, float(name), []
    except ValueError:
        parts = [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]
        return 2 + (name == NOTHING), 0.0, parts


def _hues(rows: pd.DataFrame, hue: str | None, remarks: list[str]) -> Iterator[tuple[str | None, pd.DataFrame]]:
    """The rows of each value of the hue."""
    if hue is None:
        yield None, rows
        return
    names, codes = _categories(rows[hue], MOST_HUES, remarks)
    for number, name in enumerate(names):
        yield name, rows[codes == number]


def _ordered(rows: pd.DataFrame, hue: str | None) -> bool:
    return hue is not None and _sort(rows[hue]) in ("number", "date")


def _counts(
    rows: pd.DataFrame, y: str, by: str | None, hue: str | None, kind: Kind | None, remarks: list[str]
) -> Figure:
    """How many rows have each value; with `by`, of each category how many have which."""
    import numpy as np

    _must_be(kind, ["count"], f"{y}, which holds no numbers,")
    over, hue = (y, hue) if by is None else (by, hue or y)
    categories, codes = _categories(rows[over], MOST_CATEGORIES, remarks)
    rows = rows.assign(**{"": codes})[codes >= 0]
    series = [
        Series(label, y=np.bincount(own[""], minlength=len(categories)).astype(float).tolist())
        for label, own in _hues(rows, hue, remarks)
    ]
    total = int(sum(sum(one.y) for one in series))
    return Figure(
        "count", "rows", over, hue, series, total, categories, hue_is_ordered=_ordered(rows, hue), remarks=remarks
    )


def _by_category(rows: pd.DataFrame, y: str, by: str, hue: str | None, kind: Kind | None, remarks: list[str]) -> Figure:
    _must_be(kind, OF_CATEGORIES, f"{y} by {by}")
    categories, codes = _categories(rows[by], MOST_CATEGORIES, remarks)
    rows = rows.assign(**{"": codes})[codes >= 0]
    parts = list(_hues(rows, hue, remarks))
    sizes = sorted(size for _, own in parts for size in own.groupby("").size())
    usual = "bar" if _sort(rows[y]) == "boolean" else "points" if sizes[len(sizes) // 2] <= FEW_VALUES else "box"
    chosen: Any = kind or usual
    few = FEW_VALUES * 5 if chosen == "points" else 0
    series = [Series(label, groups=_groups(own, y, len(categories), few)) for label, own in parts]
    label = f"share of {y}" if _sort(rows[y]) == "boolean" else named(y)
    total = sum(group.rows for one in series for group in one.groups if group)
    return Figure(
        chosen, label, by, hue, series, total, categories,
        y_is_date=_sort(rows[y]) == "date", hue_is_ordered=_ordered(rows, hue), remarks=remarks,
    )  # fmt: skip


def _groups(rows: pd.DataFrame, y: str, number: int, few: int) -> list[Group | None]:
    values = _numbers(rows[y])
    found: list[Group | None] = [None] * number
    for code, own in values.groupby(rows[""]):
        group = _group(own.to_numpy(), few)
        found[int(code)] = replace(group, std=None) if _sort(rows[y]) == "boolean" else group
    return found


def _group(values: Any, few: int) -> Group:
    import numpy as np

    low, middle, high = (float(value) for value in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    # A quartile between two values may lie beyond all that is inside: a whisker never points into its box.
    whiskers = min(low, float(inside.min())), max(high, float(inside.max()))
    beyond = np.sort(values[(values < whiskers[0]) | (values > whiskers[1])])
    half = MOST_FLIERS // 2
    shown = values if len(values) <= few else beyond
    shown = shown if len(shown) <= MOST_FLIERS else np.concatenate([shown[:half], shown[-half:]])
    std = float(values.std(ddof=1)) if len(values) > 1 else None
    return Group(len(values), float(values.mean()), std, (low, middle, high), whiskers, tuple(shown.tolist()))


def shortened(name: str, most: int) -> str:
    """A name with its middle left out, if it has more letters."""
    name = " ".join(name.split())
    return name if len(name) <= most else f"{name[: most - most // 2 - 1]}…{name[-(most // 2) :]}"


def distinct(names: Sequence[str], most: int) -> list[str]:
    """Names made shorter so that they still differ: with less of what all of them begin and end with, if need be."""
    short = [shortened(name, most) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    first = _alike(names)
    last = _alike([name[first:][::-1] for name in names])
    inner = [shortened(_inner(name, first, last), most) for name in names]
    return inner if len(set(inner)) == len(set(names)) else [f"{place} {name}" for place, name in enumerate(short, 1)]


def _alike(names: Sequence[str]) -> int:
    """How many letters all begin with."""
    ends = min(names), max(names)
    return next((place for place, pair in enumerate(zip(*ends, strict=False)) if pair[0] != pair[1]), len(ends[0]))


def _inner(name: str, first: int, last: int) -> str:
    begins = name[:first] if first < 10 else f"{name[:8]}…"
    ends = name[len(name) - last :] if last < 10 else f"…{name[-6:]}"
    return begins + name[first : len(name) - last] + ends


# ---------------------------------------------------------------------------------------- numbers


def _histogram(rows: pd.DataFrame, y: str, hue: str | None, kind: Kind | None, remarks: list[str]) -> Figure:
    import numpy as np

    _must_be(kind, ["hist", "count"], f"{y} without --by")
    if _sort(rows[y]) == "boolean":
        return _counts(rows, y, None, hue, None, remarks)
    edges = _edges(_numbers(rows[y]).to_numpy(), whole=rows[y].dtype.kind in "iu")
    series = []
    for label, own in _hues(rows, hue, remarks):
        heights, _ = np.histogram(_numbers(own[y]), edges)
        series.append(Series(label, x=edges.tolist(), y=heights.astype(float).tolist()))
    total = int(sum(sum(one.y) for one in series))
    return Figure(
        "hist", "rows", named(y), hue, series, total,
        x_is_date=_sort(rows[y]) == "date", hue_is_ordered=_ordered(rows, hue), remarks=remarks,
    )  # fmt: skip


def _edges(values: Any, *, whole: bool) -> Any:
    import numpy as np

    low, high = values.min(), values.max()
    if whole and high - low < MOST_BINS:
        return np.arange(low - 0.5, high + 1)
    if low == high:
        return np.array([low - (abs(low) / 20 or 0.5), low + (abs(low) / 20 or 0.5)])
    edges = np.histogram_bin_edges(values[:: max(1, len(values) // 100_000)], "auto", (low, high))
    return edges if len(edges) <= MOST_BINS + 1 else np.linspace(low, high, MOST_BINS + 1)


def _by_number(
    rows: pd.DataFrame, y: str, by: str, hue: str | None, kind: Kind | None, remarks: list[str], *, over_time: bool
) -> Figure:
    _must_be(kind, ["line", "scatter", *OF_CATEGORIES], f"{y} by {by}")
    known = rows[rows[by].notna()]
    if known.empty:
        raise Refused(f"{by}: none of {count(len(rows), 'row')} with {y} has a value", NOT_ALL_WELL)
    if len(known) < len(rows):
        remarks.append(f"{count(len(rows) - len(known), 'row')} without a value of {by} left out")
    pairs = known.assign(**{" x": _numbers(known[by]), " y": _numbers(known[y])})
    chosen: Any = kind or ("line" if over_time or _repeats(pairs) else "scatter")
    parts = list(_hues(pairs, hue, remarks))
    series = _lines(parts, remarks, by) if chosen == "line" else _points(parts, len(pairs), remarks)
    return Figure(
        chosen, named(y), named(by), hue, series, sum(len(own) for _, own in parts),
        x_is_date=_sort(rows[by]) == "date", y_is_date=_sort(rows[y]) == "date",
        x_logarithmic=_logarithmic(pairs[" x"], over_time or _sort(rows[by]) == "date"),
        hue_is_ordered=_ordered(rows, hue), remarks=remarks,
    )  # fmt: skip


def _repeats(pairs: pd.DataFrame) -> bool:
    """Whether values of x come again and again, as those of a grid do."""
    distinct = pairs[" x"].nunique()
    return bool(distinct <= 30 or distinct * 3 <= len(pairs)) and distinct > 1


def _logarithmic(x: pd.Series[Any], over_time: bool) -> bool:
    least = x.min()
    return not over_time and bool(least > 0 and x.max() / least >= LOGARITHMIC)


def _lines(parts: list[tuple[str | None, pd.DataFrame]], remarks: list[str], by: str) -> list[Series]:
    import pandas as pd

    edges = _ranges([own for _, own in parts])
    if edges is not None:
        remarks.append(f"many values of {by}: each point is the mean of a range, {len(edges) - 1} in all")
    lines = [(label, _steps(own, edges)) for label, own in parts]
    repeats = bool((pd.concat([table["count"] for _, table in lines]) > 1).any())
    return [
        Series(
            label, table.index.tolist(), table["mean"].tolist(), table["std"].fillna(0).tolist() if repeats else None
        )
        for label, table in lines
    ]


def _ranges(parts: list[pd.DataFrame]) -> Any:
    """The edges of ranges of x that values are put together in; None where there are few values of x."""
    import numpy as np

    if max(own[" x"].nunique() for own in parts) <= MOST_STEPS:
        return None
    usual = sum(map(len, parts)) // len(parts)
    number = min(MOST_STEPS, max(MOST_STEPS // 10, usual // FEW_VALUES // 2))
    low, high = min(own[" x"].min() for own in parts), max(own[" x"].max() for own in parts)
    return np.linspace(low, high, number + 1)


def _steps(rows: pd.DataFrame, edges: Any) -> pd.DataFrame:
    """Mean and deviation at each value of x, or in each range of it."""
    import numpy as np

    x, y = rows[" x"], rows[" y"]
    if edges is None:
        return y.groupby(x).agg(["mean", "std", "count"])
    table = y.groupby(np.digitize(x, edges[1:-1])).agg(["mean", "std", "count"])
    table.index = ((edges[:-1] + edges[1:]) / 2)[table.index]
    return table


def _points(parts: list[tuple[str | None, pd.DataFrame]], total: int, remarks: list[str]) -> list[Series]:
    if total > MOST_POINTS:
        remarks.append(f"{MOST_POINTS:,} of {total:,} points are drawn, chosen at random")
        parts = [(label, own.sample(frac=MOST_POINTS / total, random_state=_SEED)) for label, own in parts]
    return [Series(label, own[" x"].tolist(), own[" y"].tolist()) for label, own in parts]
