"""Files of rows: CSV, JSON, JSON lines, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncexp.errors import ParameterCombinationError, unknown

if TYPE_CHECKING:
    from asyncexp.schema import Column

Row = dict[str, Any]


def read(file: Path, keyfields: Sequence[Column]) -> list[Row]:
    """The rows of a file.

    Raises:
        ParameterCombinationError: it cannot be read or understood; line and column are told where there are any.
    """
    ending = file.suffix.lower()
    if ending not in _READ:
        raise ParameterCombinationError(unknown(f"--rows {file}: no kind of file", ending, _READ))
    try:
        return _READ[ending](file, keyfields)
    except UnicodeDecodeError:
        raise ParameterCombinationError(f"{file}: is not UTF-8 text; save it in that encoding") from None
    except OSError as error:
        raise ParameterCombinationError(f"{file}: cannot be read: {error.strerror or error}") from None


def _csv(file: Path, keyfields: Sequence[Column]) -> list[Row]:
    json_columns = {column.name for column in keyfields if getattr(column.type, "name", "") == "JSON"}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        try:
            reader = csv.DictReader(lines, strict=True)
            return [_typed(row, json_columns, f"{file}, line {reader.line_num}") for row in reader]
        except csv.Error as wrong:
            raise ParameterCombinationError(f"{file}, line {reader.line_num}: {wrong}") from None


def _typed(row: dict[Any, Any], json_columns: set[str], where: str) -> Row:
    """Texts as they stand; what they mean, the type of the column says."""
    if None in row:
        raise ParameterCombinationError(f"{where}: has more cells than the heading")
    if None in row.values():
        raise ParameterCombinationError(f"{where}: has fewer cells than the heading")
    return {name: _cell(text, name in json_columns, f"{where}, {name}") for name, text in row.items()}


def _cell(text: str, is_json: bool, where: str) -> Any:
    if text == "":
        return None
    return _parsed(text, where) if is_json else text


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as wrong:
        raise ParameterCombinationError(f"{where}: is no JSON: {wrong}") from None


def _json(file: Path, _: Sequence[Column]) -> list[Row]:
    found = _parsed(file.read_text("utf-8-sig"), str(file))
    if not isinstance(found, list):
        raise ParameterCombinationError(f"{file}: a list of rows is wanted, [{{…}}, {{…}}], not {_kind(found)}")
    return [_object(row, f"{file}, row {number}") for number, row in enumerate(found, 1)]


def _jsonl(file: Path, _: Sequence[Column]) -> list[Row]:
    return [_object(_parsed(line, where), where) for where, line in _lines(file)]


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(file.read_text("utf-8-sig").split("\n"), 1):
        if line.strip():
            yield f"{file}, line {number}", line


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise ParameterCombinationError(f"{where}: a row is an object of keyfields and values, not {_kind(row)}")
    return row


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def _parquet(file: Path, _: Sequence[Column]) -> list[Row]:
    import pandas

    try:
        frame = pandas.read_parquet(file).astype(object)
    except ImportError:
        raise ParameterCombinationError(f"{file}: to read Parquet takes pyarrow: pip install pyarrow") from None
    except ValueError as wrong:
        raise ParameterCombinationError(f"{file}: is no Parquet file: {wrong}") from None
    return frame.where(frame.notna(), None).to_dict("records")  # type: ignore[return-value]


_READ: dict[str, Callable[[Path, Sequence[Column]], list[Row]]] = {
    ".csv": _csv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
