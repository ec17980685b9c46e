"""Values of keyfields and their combinations: ranges, Cartesian products, fixed combinations. Lazy and pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from itertools import product as cartesian
from math import ceil, isfinite, lcm
from typing import Any

from asyncexp.errors import InvalidValuesInConfiguration, ParameterCombinationError

MAX_RANGE = 10_000_000
"""Longer ranges are taken for a slip: a table of that many rows per keyfield is never meant."""

Values = Iterable[Any] | Mapping[str, Any]


def expand(values: Values) -> Sequence[Any]:
    """The values of a keyfield: those of a list as they are, or of `{start, stop, step}` with `stop` excluded.

    A range of whole numbers gives ints; any other gives floats, each the nearest to its exact decimal value,
    so that neither rounding adds `stop` nor the values drift.

    Raises:
        InvalidValuesInConfiguration: neither a list nor a range that makes sense.
    """
    if isinstance(values, Mapping):
        return _range(values)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidValuesInConfiguration(
            f"the values are {values!r}, wanted is a list, [{values!r}], or a range, {{start, stop, step}}"
        )
    return tuple(values)


def product(parameters: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every combination of the parameters' values, in the order of nested loops: the last name runs fastest.

    Raises:
        InvalidValuesInConfiguration: as `expand`, before the first combination.
    """
    names = list(parameters)
    pools = [expand(values) for values in parameters.values()]
    return (dict(zip(names, chosen, strict=True)) for chosen in cartesian(*pools))


def combine(
    fixed: Iterable[Mapping[str, Any]] | None = None, parameters: Mapping[str, Values] | None = None
) -> Iterator[dict[str, Any]]:
    """Each fixed combination with each combination of the parameters' values; the parameters run faster.

    Without fixed combinations it is `product(parameters)`; without parameters, the fixed combinations alone.
    The mappings given are never changed.

    Raises:
        ParameterCombinationError: a fixed combination names a field that is among the parameters too.
        InvalidValuesInConfiguration: as `expand`.
    """
    pools = {name: expand(values) for name, values in (parameters or {}).items()}
    if fixed is None:
        return product(pools) if pools else iter(())
    return _combined(fixed, pools)


def _combined(fixed: Iterable[Mapping[str, Any]], pools: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    empty = True
    for index, combination in enumerate(fixed):
        empty = False
        _check_disjoint(index, combination, pools)
        for chosen in product(pools):
            yield {**combination, **chosen}
    if empty and pools:
        yield from product(pools)


def _check_disjoint(index: int, combination: Mapping[str, Any], pools: Mapping[str, Values]) -> None:
    twice = [name for name in combination if name in pools]
    if twice:
        raise ParameterCombinationError(
            f"fixed combination {index}: {twice[0]!r} is given there and among the parameters; "
            "leave it out of one of them"
        )


# --------------------------------------------------------------------------------------------- ranges


class Fractions(Sequence[float]):
    """`start`, `start + step`, …: `length` floats, each computed when asked for, and rounded once."""

    def __init__(self, start: Fraction, step: Fraction, length: int) -> None:
        self._below = lcm(start.denominator, step.denominator)
        self._start, self._step = int(start * self._below), int(step * self._below)
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(self._length)))
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return (self._start + index % self._length * self._step) / self._below


def _range(words: Mapping[str, Any]) -> Sequence[Any]:
    missing = [name for name in ("start", "stop") if name not in words]
    unknown = [name for name in words if name not in ("start", "stop", "step")]
    if missing or unknown:
        wrong = f"lacks {missing[0]!r}" if missing else f"does not know {unknown[0]!r}"
        raise InvalidValuesInConfiguration(f"a range is {{start, stop, step}}; this one {wrong}")
    start, step = words["start"], words.get("step", 1)
    first, by = _exact("start", start), _exact("step", step)
    length = _length(first, _exact("stop", words["stop"]), by)
    if isinstance(start, int) and isinstance(step, int):
        return range(start, start + length * step, step)
    return Fractions(first, by, length)


def _exact(name: str, number: Any) -> Fraction:
    """A float as the decimal number that is written (0.1), not as stored (0.1000000000000000055…)."""
    if isinstance(number, int | float | Decimal) and not isinstance(number, bool) and isfinite(number):
        return Fraction(repr(number) if isinstance(number, float) else number)
    raise InvalidValuesInConfiguration(f"{name} of the range must be a finite number, not {number!r}")


def _length(start: Fraction, stop: Fraction, step: Fraction) -> int:
    if step == 0:
        raise InvalidValuesInConfiguration("step of the range must not be 0")
    steps = (stop - start) / step
    if steps <= 0:
        raise InvalidValuesInConfiguration(
            "the range is empty: by `step` no value lies between `start` and `stop`, and `stop` is excluded"
        )
    if steps > MAX_RANGE:
        raise InvalidValuesInConfiguration(f"the range has over {MAX_RANGE:,} values; is `step` as meant?")
    return ceil(steps)
