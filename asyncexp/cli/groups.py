"""Groups of rows, and what is told of each: means, deviations, counts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncexp.cli.codes import Refused

if TYPE_CHECKING:
    import pandas as pd

STATISTICS = ("mean", "std", "median", "min", "max", "sum")
"""Of one column; in the order in which they stand in a file."""
OF_NUMBERS = {"mean", "std", "median", "sum"}
COUNT = "count"


@dataclass(frozen=True)
class Wanted:
    """What is told of each group."""

    by: tuple[str, ...]
    statistics: Mapping[str, Sequence[str]]
    """Column -> what of it."""
    count: bool = False

    def __bool__(self) -> bool:
        return bool(self.by or self.statistics or self.count)

    @property
    def columns(self) -> list[tuple[str, str, str]]:
        """Name in the file, column, statistic."""
        return [
            (f"{column}_{statistic}", column, statistic)
            for column, wanted in self.statistics.items()
            for statistic in STATISTICS
            if statistic in wanted
        ]

    @property
    def spreads(self) -> dict[str, tuple[str, str]]:
        """Columns of which mean and standard deviation are told -> the names of both."""
        both = [column for column, wanted in self.statistics.items() if {"mean", "std"} <= set(wanted)]
        return {column: (f"{column}_mean", f"{column}_std") for column in both}


def summarised(frame: pd.DataFrame, wanted: Wanted) -> pd.DataFrame:
    """One row a group, ordered by group; values that are missing count nowhere but among the rows.

    `std` is that of a sample: of a group with one value it is missing.

    Raises:
        Refused: a statistic of numbers, of a column that has none.
    """
    import pandas as pd

    groups = _grouped(frame, wanted.by)
    made = {name: _statistic(frame[column], statistic, groups) for name, column, statistic in wanted.columns}
    if wanted.count or not made:
        made[_free(COUNT, wanted.by)] = groups.size().astype("Int64")
    table = pd.DataFrame(made)
    if not wanted.by:
        return table.reset_index(drop=True) if len(frame) else table.iloc[:0]
    table.index.names = [f"by_{name}" if name in made else name for name in wanted.by]
    return table.reset_index()


def _free(name: str, taken: Sequence[str]) -> str:
    return f"{name}_rows" if name in taken else name


def _grouped(frame: pd.DataFrame, by: Sequence[str]) -> Any:
    if not by:
        return frame.groupby([0] * len(frame))
    keys = frame[list(by)].apply(hashable)
    try:
        groups = keys.groupby(list(by), dropna=False)
        groups.ngroups  # noqa: B018  (here it is sorted)
    except TypeError:
        groups = keys.groupby(list(by), dropna=False, sort=False)
    return groups


def hashable(column: pd.Series[Any]) -> pd.Series[Any]:
    """The column, with lists and dicts as the JSON that they are."""
    if column.dtype != object:
        return column
    return column.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)


def _statistic(column: pd.Series[Any], statistic: str, groups: Any) -> pd.Series[Any]:
    values = _numbers(column, statistic) if statistic in OF_NUMBERS else _ordered(column, statistic)
    found = values.groupby(groups.ngroup(), dropna=False).agg(statistic)
    if statistic == "sum":
        found = values.groupby(groups.ngroup()).sum(min_count=1)
    found.index = groups.size().index
    return found.astype("float64") if str(found.dtype) == "Float64" else found


def _numbers(column: pd.Series[Any], statistic: str) -> pd.Series[Any]:
    numeric = column.dtype.kind in "iufb"
    if not numeric and not column.isna().all():
        raise Refused(f"--{statistic} {column.name}: it holds no numbers; --min, --max and --count take any column")
    if statistic == "sum" and column.dtype.kind == "i":
        return column
    return column.astype("Float64")


def _ordered(column: pd.Series[Any], statistic: str) -> pd.Series[Any]:
    if column.dtype == object and not column.isna().all():
        kinds = {type(value) for value in column.dropna()}
        if len(kinds) > 1 or kinds & {list, dict}:
            raise Refused(f"--{statistic} {column.name}: its values have no order")
    return column.astype("Int64") if str(column.dtype) == "boolean" else column
