"""Ranges and combinations."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncexp.errors import InvalidValuesInConfiguration, ParameterCombinationError
from asyncexp.grid import MAX_RANGE, combine, expand, product


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ({"start": 0, "stop": 5}, [0, 1, 2, 3, 4]),
        ({"start": 5, "stop": 0, "step": -2}, [5, 3, 1]),
        ({"start": 0, "stop": 1, "step": 0.1}, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ({"start": 1, "stop": 1.3, "step": 0.1}, [1.0, 1.1, 1.2]),
        ({"start": Decimal("0.5"), "stop": 2}, [0.5, 1.5]),
        ({"start": 10**40, "stop": 10**40 + 2}, [10**40, 10**40 + 1]),
    ],
)
def test_a_range_excludes_its_stop(words: dict[str, Any], values: list[Any]) -> None:
    found = list(expand(words))
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@given(st.integers(-1000, 1000), st.integers(1, 400), st.integers(1, 500), st.integers(0, 6))
def test_fractions_neither_drift_nor_reach_the_stop(start: int, count: int, step: int, digits: int) -> None:
    """Numbers with a few decimals, as a file would have them."""
    scale = Decimal(10) ** -digits
    first, by = float(start * scale), float(step * scale)
    stop = float((start + count * step) * scale)
    found = expand({"start": first, "stop": stop, "step": by})
    assert len(found) == count
    assert found[-1] < stop
    assert [float(value) for value in found] == [float((start + i * step) * scale) for i in range(count)]


def test_a_range_is_lazy_and_a_sequence() -> None:
    values = expand({"start": 0, "stop": MAX_RANGE})
    assert len(values) == MAX_RANGE
    assert values[-1] == MAX_RANGE - 1
    fractions = expand({"start": 0.5, "stop": MAX_RANGE})
    assert (fractions[-1], fractions[2:8:3]) == (MAX_RANGE - 0.5, (2.5, 5.5))
    with pytest.raises(IndexError):
        fractions[MAX_RANGE]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"start": 0}, "lacks 'stop'"),
        ({"start": 0, "stop": 1, "stepsize": 1}, "does not know 'stepsize'"),
        ({"start": 0, "stop": 1, "step": 0}, "step of the range must not be 0"),
        ({"start": 1, "stop": 1}, "empty"),
        ({"start": 0, "stop": 1, "step": -1}, "empty"),
        ({"start": 0, "stop": math.inf}, "stop of the range must be a finite number"),
        ({"start": math.nan, "stop": 1}, "start of the range must be a finite number"),
        ({"start": True, "stop": 3}, "start of the range must be a finite number"),
        ({"start": "a", "stop": 3}, "start of the range must be a finite number"),
        ({"start": 0, "stop": 1, "step": 1e-9}, "over 10,000,000 values"),
        (5, "[5]"),
        ("abc", "['abc']"),
        (None, "wanted is a list"),
    ],
)
def test_what_is_no_list_or_range_is_refused(words: Any, said: str) -> None:
    with pytest.raises(InvalidValuesInConfiguration) as caught:
        expand(words)
    assert said in str(caught.value)


def test_the_last_name_runs_fastest() -> None:
    assert list(product({"a": [1, 2], "b": {"start": 0, "stop": 2}})) == [
        {"a": 1, "b": 0},
        {"a": 1, "b": 1},
        {"a": 2, "b": 0},
        {"a": 2, "b": 1},
    ]


def test_a_huge_product_starts_at_once() -> None:
    rows = product({name: range(1000) for name in "abcd"})
    assert list(islice(rows, 2)) == [{"a": 0, "b": 0, "c": 0, "d": 0}, {"a": 0, "b": 0, "c": 0, "d": 1}]


def test_fixed_combinations_with_parameters() -> None:
    fixed = [{"kernel": "rbf", "gamma": 1}, {"kernel": "poly", "gamma": 2}]
    rows = list(combine(fixed, {"seed": [1, 2]}))
    assert rows == [{**chosen, "seed": seed} for chosen in fixed for seed in (1, 2)]
    assert fixed == [{"kernel": "rbf", "gamma": 1}, {"kernel": "poly", "gamma": 2}]


def test_fixed_combinations_or_parameters_alone() -> None:
    assert list(combine([{"a": 1}])) == [{"a": 1}]
    assert list(combine(None, {"a": [1, 2]})) == [{"a": 1}, {"a": 2}]
    assert list(combine([], {"a": [1, 2]})) == [{"a": 1}, {"a": 2}]
    assert list(combine()) == []
    assert list(combine([], {})) == []


def test_fixed_combinations_may_stream() -> None:
    rows = combine(({"a": i} for i in range(10**12)), {"b": [0]})
    assert next(rows) == {"a": 0, "b": 0}


def test_a_field_given_twice_is_named() -> None:
    with pytest.raises(ParameterCombinationError) as caught:
        list(combine([{"a": 1}, {"a": 1, "b": 2}], {"b": [1]}))
    assert "fixed combination 1" in str(caught.value)
    assert "'b'" in str(caught.value)
