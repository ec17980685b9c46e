"""From the user's parameters to rows that can be added: checked, typed by column, hashed; lazily."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from asyncexp.errors import (
    EmptyFillDatabaseCallError,
    InvalidValuesInConfiguration,
    ParameterCombinationError,
    unknown,
)
from asyncexp.store.fill import BATCH, Filled, KeyRow, add, batches, count_anew
from asyncexp.store.study import Study
from asyncexp.values import ColumnType, encoder, key_hash, key_part

CACHED_VALUES = 100_000
PLAIN = (int, str, float, bool, type(None))
"""Types of which equal values are the same value."""
NOTHING = Filled()


class _Cell(NamedTuple):
    """A value of one keyfield, ready for use in any number of rows."""

    bound: Any
    part: bytes
    """What it adds to the key hash."""


class Rows:
    """Makes rows of one study."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._names = study.schema.key_names
        self._order = study.schema.hash_order
        self._cells: list[Callable[[Any], _Cell]] = [
            _cell_maker(study, key.name, key.type) for key in study.schema.keyfields if isinstance(key.type, ColumnType)
        ]
        self._caches: list[dict[tuple[type, Any], _Cell]] = [{} for _ in self._names]

    def one(self, row: Mapping[str, Any], where: str) -> KeyRow:
        """A row from a dict; `where` names it in errors.

        Raises:
            ParameterCombinationError: a keyfield is missing, unknown or impossible.
        """
        self._check_names(row, where)
        return self._join([self._cell(position, row[name], where) for position, name in enumerate(self._names)])

    def many(self, rows: Iterable[Mapping[str, Any]], start: int = 0) -> Iterator[KeyRow]:
        """Rows from dicts, one at a time; errors count from `start`."""
        for index, row in enumerate(rows, start):
            yield self.one(row, f"row {index}")

    def product(
        self, parameters: Mapping[str, Iterable[Any]], fixed: Sequence[Mapping[str, Any]] = ({},)
    ) -> Iterator[KeyRow]:
        """Fixed combinations times the Cartesian product, the last keyfield fastest.

        Every value is checked and typed once, however many rows it is part of.
        """
        _check_parts(parameters, fixed)
        options = {name: [self._cell_of(name, v, f"parameter {name!r}") for v in vs] for name, vs in parameters.items()}
        for index, combination in enumerate(fixed):
            where = f"fixed combination {index}"
            self._check_overlap(combination, parameters, where)
            self._check_names({**dict.fromkeys(parameters), **combination}, where)
            lists = [
                options[name] if name in options else [self._cell(position, combination[name], where)]
                for position, name in enumerate(self._names)
            ]
            for cells in itertools.product(*lists):
                yield self._join(cells)

    def _check_overlap(self, combination: Mapping[str, Any], parameters: Mapping[str, Any], where: str) -> None:
        both = sorted(combination.keys() & parameters.keys())
        if both:
            raise ParameterCombinationError(f"{where}: {', '.join(both)} stands in `parameters`, too")

    def _check_names(self, row: Mapping[str, Any], where: str) -> None:
        if not isinstance(row, Mapping):
            raise ParameterCombinationError(f"{where}: a row is a dict of keyfields, not {type(row).__name__}")
        for name in row:
            if name not in self._names:
                raise ParameterCombinationError(unknown(f"{where}: no keyfield", name, self._names))
        missing = [name for name in self._names if name not in row]
        if missing:
            raise ParameterCombinationError(f"{where}: keyfield {', '.join(map(repr, missing))} is missing")

    def _cell_of(self, name: str, value: Any, where: str) -> _Cell:
        if name not in self._names:
            raise ParameterCombinationError(unknown("no keyfield", name, self._names))
        return self._cell(self._names.index(name), value, where)

    def _cell(self, position: int, value: Any, where: str) -> _Cell:
        if type(value) not in PLAIN:  # 1 == Decimal("1.0") == Decimal("1.00"), and (1,) == (True,)
            return self._new_cell(position, value, where)
        cache = self._caches[position]
        cached = cache.get((type(value), value))
        if cached is None:
            cached = self._new_cell(position, value, where)
            if len(cache) < CACHED_VALUES:
                cache[(type(value), value)] = cached
        return cached

    def _new_cell(self, position: int, value: Any, where: str) -> _Cell:
        try:
            return self._cells[position](value)
        except ValueError as wrong:
            raise ParameterCombinationError(f"{where}, keyfield {self._names[position]!r}: {wrong}") from None

    def _join(self, cells: Sequence[_Cell]) -> KeyRow:
        return KeyRow(key_hash([cells[position].part for position in self._order]), tuple(cell.bound for cell in cells))


def _cell_maker(study: Study, name: str, type_: ColumnType) -> Callable[[Any], _Cell]:
    encode = encoder(type_, key=True)

    def make(value: Any) -> _Cell:
        canonical = encode(value)
        return _Cell(study.bound(canonical), key_part(name, type_, canonical))

    return make


Told = Callable[[Filled], None]
"""Hears of what was added so far."""


def silent(_: Filled) -> None:
    """Nobody wants to know."""


async def fill(study: Study, rows: Iterable[KeyRow], told: Told = silent) -> Filled:
    """Adds rows in batches, telling after each; earlier batches stay if a later row is bad.

    Raises:
        EmptyFillDatabaseCallError: there were none.
        ParameterCombinationError: a bad row; the message says how many rows had been added by then.
    """
    return await _seen_off(study, await _add_all(study, rows, NOTHING, told))


async def _seen_off(study: Study, total: Filled) -> Filled:
    if total == NOTHING:
        raise EmptyFillDatabaseCallError("There are no rows to fill the table with.")
    await count_anew(study, total.added)
    return total


async def _add_all(study: Study, rows: Iterable[KeyRow], total: Filled, told: Told) -> Filled:
    """What the same call of the user's has added already, and this."""
    try:
        for batch in batches(rows):
            total += await add(study, batch)
            told(total)
    except ParameterCombinationError as wrong:
        added = f" ({total.added} rows were added before it)" if total.added else ""
        raise ParameterCombinationError(f"{wrong}{added}") from None
    return total


async def fill_rows(
    study: Study,
    rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]] | Any,
    told: Told = silent,
) -> Filled:
    """Adds dicts from an iterable, an async iterable or a DataFrame, in whose cells missing means NULL."""
    if isinstance(rows, AsyncIterable):
        return await _fill_async(study, Rows(study), rows, told)
    return await fill(study, given(study, rows), told)


def given(study: Study, rows: Iterable[Mapping[str, Any]] | Any) -> Iterator[KeyRow]:
    """The rows of an iterable of dicts or a DataFrame."""
    if hasattr(rows, "to_dict") and hasattr(rows, "iloc"):
        return Rows(study).many(_records(rows))
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        raise ParameterCombinationError(f"rows is a list of dicts, not {type(rows).__name__}")
    return Rows(study).many(rows)


async def _fill_async(study: Study, make: Rows, rows: AsyncIterable[Mapping[str, Any]], told: Told) -> Filled:
    total = NOTHING
    start = 0
    async for chunk in _chunks(rows):
        total = await _add_all(study, make.many(chunk, start), total, told)
        start += len(chunk)
    return await _seen_off(study, total)


async def _chunks(rows: AsyncIterable[Mapping[str, Any]]) -> AsyncIterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] = []
    async for row in rows:
        chunk.append(row)
        if len(chunk) == BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _records(frame: Any) -> Iterator[dict[str, Any]]:
    for start in range(0, len(frame), BATCH):
        part = frame.iloc[start : start + BATCH].astype(object)
        yield from part.where(part.notna(), None).to_dict("records")


def configured(keyfields: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The values of all keyfields as the configuration gives them.

    Raises:
        InvalidValuesInConfiguration: a keyfield has neither `values` nor a `default`.
    """
    values: dict[str, Sequence[Any]] = {}
    for key in keyfields:
        if key.values is not None:
            values[key.name] = key.values
        elif key.has_default:
            values[key.name] = (key.default,)
        else:
            raise InvalidValuesInConfiguration(
                f"keyfield {key.name!r} has no `values`; add some, or use fill_table_with_rows() or "
                "fill_table_from_combination()"
            )
    return values


def _check_parts(parameters: object, fixed: object) -> None:
    """That there is a dict of lists, and a list of dicts: a text is a list of letters to Python."""
    if not isinstance(parameters, Mapping):
        raise ParameterCombinationError(
            f"parameters: a dict of keyfields and their values, not {type(parameters).__name__}"
        )
    for name, values in parameters.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ParameterCombinationError(
                f"parameter {name!r}: wanted is a list of values, [{values!r}] for a single one, not {values!r}"
            )
    if isinstance(fixed, str | bytes | Mapping) or not isinstance(fixed, Iterable):
        raise ParameterCombinationError(
            f"fixed_parameter_combinations: a list of dicts, each a fixed combination, not {type(fixed).__name__}"
        )
