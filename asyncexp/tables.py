"""Rows of a table as a pandas DataFrame, with the same dtypes from every database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from asyncexp.values import ColumnType, decoder

if TYPE_CHECKING:
    import pandas

_NAMED = {
    "int": ColumnType("BIGINT"),
    "float": ColumnType("DOUBLE"),
    "text": ColumnType("LONGTEXT"),
    "datetime": ColumnType("DATETIME"),
    "bool": ColumnType("BOOLEAN"),
}
_NONE = type(None)
_BLOCK = 200


def frame(columns: Sequence[tuple[str, ColumnType | str]], rows: Sequence[Sequence[Any]]) -> pandas.DataFrame:
    """Rows as a driver returned them, as a DataFrame with one dtype a column type, empty tables too.

    INT and BIGINT Int64; NUMERIC, DOUBLE and FLOAT float64 (NULL is NaN); BOOLEAN boolean; DATETIME
    datetime64[us] (UTC, without saying so); texts `str`, which is `object` before pandas 3; JSON object,
    parsed. A type may also be one of the words int, float, text, datetime, bool.

    A column that holds anything not of its type (SQLite takes it) is `object`, every value as it is stored.
    """
    import pandas

    names = [name for name, _ in columns]
    data = {
        name: _series(_NAMED[kind] if isinstance(kind, str) else kind, cells)
        for (name, kind), cells in zip(columns, _transposed(rows, len(columns)), strict=True)
    }
    return pandas.DataFrame(data, index=pandas.RangeIndex(len(rows)), columns=names)


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of one column, and which classes they have."""

    values: list[Any]
    classes: set[type]

    def add(self, values: Iterable[Any]) -> None:
        self.values.extend(values)
        self.classes.update(map(type, values))

    def decoded(self, type_: ColumnType) -> _Cells:
        decode = decoder(type_)
        values = [decode(value) for value in self.values]
        return _Cells(values, set(map(type, values)))

    def array(self, dtype: Any = object) -> Any:
        import numpy as np

        return np.fromiter(self.values, dtype, len(self.values))

    def missing(self) -> Any:
        import numpy as np

        if _NONE not in self.classes:
            return np.zeros(len(self.values), bool)
        return np.fromiter((value is None for value in self.values), bool, len(self.values))


def _transposed(rows: Sequence[Sequence[Any]], width: int) -> list[_Cells]:
    """The cells by column; by blocks of rows that fit a processor's cache, or else each cell costs a miss."""
    columns = [_Cells([], set()) for _ in range(width)]
    for start in range(0, len(rows), _BLOCK):
        block = zip(*rows[start : start + _BLOCK], strict=True)
        for column, values in zip(columns, block, strict=True):
            column.add(values)
    return columns


def _series(type_: ColumnType, cells: _Cells) -> pandas.Series[Any]:
    import pandas

    build, takes = _BUILD.get(type_.name, (_texts, {str, _NONE}))
    found = build(cells) if cells.classes <= takes else None
    if found is None:
        cells = cells.decoded(type_)
        found = build(cells) if cells.classes <= takes else None
    return pandas.Series(_objects(cells) if found is None else found, copy=False)


def _integers(cells: _Cells) -> Any:
    import numpy as np
    import pandas

    try:
        if _NONE not in cells.classes:
            values = cells.array("int64")
        else:
            values = np.array([0 if value is None else value for value in cells.values], "int64")
    except OverflowError:
        return None
    return pandas.arrays.IntegerArray(values, cells.missing())


def _booleans(cells: _Cells) -> Any:
    import pandas

    if not set(cells.values) <= {0, 1, None}:
        return None
    return pandas.arrays.BooleanArray(cells.array(bool), cells.missing())


def _floats(cells: _Cells) -> Any:
    return cells.array("float64")  # None becomes NaN


def _texts(cells: _Cells) -> Any:
    """`str`, pandas 3's own; before it, that name made "None" of None, so there object with str and None."""
    import pandas

    if int(pandas.__version__.split(".")[0]) < 3:
        return _objects(cells)
    return pandas.array(cells.array(), dtype="str", copy=False)


def _dates(cells: _Cells) -> Any:
    """In one go where pandas can: not with offsets, nor before pandas 3 with years outside 1678 to 2261."""
    import pandas

    try:
        if str in cells.classes:
            return _parsed(cells)
        return pandas.DatetimeIndex(cells.array(), dtype="datetime64[us]")
    except ValueError:
        moments = cells.decoded(_NAMED["datetime"])
        return moments.array("datetime64[us]") if moments.classes <= {datetime, _NONE} else None


def _parsed(cells: _Cells) -> pandas.DatetimeIndex:
    import pandas

    if datetime in cells.classes or _has_offsets(cells):
        raise ValueError("pandas 2 would give the offset of one to the others")
    found = pandas.DatetimeIndex(pandas.to_datetime(cells.array(), format="ISO8601"))
    if (pandas.isna(found) != cells.missing()).any():
        raise ValueError("texts that pandas takes for missing, and nobody else does")
    return found.as_unit("us")


def _has_offsets(cells: _Cells) -> bool:
    texts = [text for text in cells.values if text]
    together = "".join(texts)
    return together.count("-") != 2 * len(texts) or "+" in together or "Z" in together


def _objects(cells: _Cells) -> pandas.Series[Any]:
    import pandas

    return pandas.Series(cells.array(), dtype=object, copy=False)


def _json(cells: _Cells) -> Any:
    return _objects(cells.decoded(ColumnType("JSON")))


_NUMBERS: set[type] = {float, int, Decimal, _NONE}
_BUILD: dict[str, tuple[Callable[[_Cells], Any], set[type]]] = {
    "INT": (_integers, {int, _NONE}),
    "BIGINT": (_integers, {int, _NONE}),
    "NUMERIC": (_floats, _NUMBERS),
    "DOUBLE": (_floats, _NUMBERS),
    "FLOAT": (_floats, _NUMBERS),
    "BOOLEAN": (_booleans, {bool, int, _NONE}),
    "DATETIME": (_dates, {str, datetime, _NONE}),
    "JSON": (_json, {str, bytes, int, float, _NONE}),
}
"""Type -> what makes its column (or None, if it cannot), and the classes of cells that it takes as they come."""
