"""Rows of a table as a pandas DataFrame, with the same dtypes from every database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from asyncexp.values import ColumnType, decoder

if TYPE_CHECKING:
    import pandas

Cells = Sequence[Any]
_NAMED = {
    "int": ColumnType("BIGINT"),
    "float": ColumnType("DOUBLE"),
    "text": ColumnType("LONGTEXT"),
    "datetime": ColumnType("DATETIME"),
    "bool": ColumnType("BOOLEAN"),
}


def frame(
    columns: Sequence[tuple[str, ColumnType | str]], rows: Sequence[tuple[Any, ...]]
) -> pandas.DataFrame:
    """Rows as a driver returned them, as a DataFrame with one dtype a column type, empty tables too.

    INT and BIGINT Int64; NUMERIC, DOUBLE and FLOAT float64 (NULL is NaN); BOOLEAN boolean; DATETIME
    datetime64[us] (UTC, without saying so); texts `str`, which is `object` before pandas 3; JSON object,
    parsed. A type may also be one of the words int, float, text, datetime, bool.

    A column that holds anything not of its type (SQLite takes it) is `object`, every value as it is stored.
    """
    import pandas

    cells = zip(*rows, strict=True) if rows else ((),) * len(columns)
    data = {name: _series(_type(kind), values) for (name, kind), values in zip(columns, cells, strict=True)}
    return pandas.DataFrame(data, index=pandas.RangeIndex(len(rows)), columns=[name for name, _ in columns])


def _type(kind: ColumnType | str) -> ColumnType:
    return _NAMED[kind] if isinstance(kind, str) else kind


def _series(type: ColumnType, cells: Cells) -> pandas.Series[Any]:
    import pandas

    build, takes = _BUILD.get(type.name, (_texts, _TEXT))
    if not takes or not _classes(cells) <= takes:
        decode = decoder(type)
        cells = [decode(cell) for cell in cells]
    if type.name == "JSON" or not _classes(cells) <= (takes or _DATES):
        return pandas.Series(_objects(cells), dtype=object, copy=False)
    return pandas.Series(build(cells), copy=False)


def _classes(cells: Cells) -> set[type]:
    """The classes present: a few milliseconds for 100,000 cells, and it spares a look at each of them."""
    return set(map(type, cells))


def _objects(cells: Cells) -> Any:
    import numpy as np

    return np.fromiter(cells, dtype=object, count=len(cells))


def _masked(cells: Cells, filler: Any, dtype: str) -> tuple[Any, Any]:
    """The values with `filler` for None, and where None was."""
    import numpy as np

    if None not in cells:
        return np.array(cells, dtype), np.zeros(len(cells), bool)
    filled = [filler if cell is None else cell for cell in cells]
    return np.array(filled, dtype), np.array([cell is None for cell in cells], bool)


def _integers(cells: Cells) -> Any:
    import pandas

    return pandas.arrays.IntegerArray(*_masked(cells, 0, "int64"))


def _booleans(cells: Cells) -> Any:
    import pandas

    return pandas.arrays.BooleanArray(*_masked(cells, False, "bool"))


def _floats(cells: Cells) -> Any:
    import numpy as np

    return np.array(cells, "float64")  # None becomes NaN


def _dates(cells: Cells) -> Any:
    import numpy as np

    return np.array(cells, "datetime64[us]")  # None becomes NaT


def _texts(cells: Cells) -> Any:
    """`str`, pandas 3's own; before it that name made "None" of None, so there object with str and None."""
    import pandas

    if int(pandas.__version__.split(".")[0]) < 3:
        return pandas.Series(_objects(cells), dtype=object, copy=False)
    return pandas.array(_objects(cells), dtype="str", copy=False)


_NONE = type(None)
_TEXT = {str, _NONE}
_DATES = {datetime, _NONE}
_BUILD: dict[str, tuple[Callable[[Cells], Any], set[type]]] = {
    "INT": (_integers, {int, _NONE}),
    "BIGINT": (_integers, {int, _NONE}),
    "NUMERIC": (_floats, {float, int, Decimal, _NONE}),
    "DOUBLE": (_floats, {float, int, Decimal, _NONE}),
    "FLOAT": (_floats, {float, int, Decimal, _NONE}),
    "BOOLEAN": (_booleans, {bool, _NONE}),
    "DATETIME": (_dates, set()),
    "JSON": (_objects, set()),
}
"""Type -> what makes its column, and the classes it takes as a driver returns them (none: decode first)."""
