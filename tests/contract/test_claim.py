"""Which rows an `execute` takes, how many, in which order; each of them exactly once."""

from __future__ import annotations

import asyncio
import time
from itertools import accumulate
from typing import Any

import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import InvalidConfigError, ParameterCombinationError
from tests.contract.conftest import Make
from tests.contract.functions import Ran
from tests.contract.shared import Seen, Shared, until
from tests.contract.sql import execute as change
from tests.contract.sql import locked
from tests.contract.support import Keys, audit, eventually, numbers, statuses

PAIRS: dict[str, Any] = {"number": {"type": "INT"}, "kind": {"type": "VARCHAR(20)"}}


async def filled(make: Make, count: int, **study: Any) -> Experimenter:
    experimenter = make(keyfields=numbers(count), **study)
    await experimenter.fill_table_from_config()
    return experimenter


# ----------------------------------------------------------------------------------- how many, in which order


async def test_one_at_a_time_rows_run_in_the_order_of_their_ids(make: Make, shared: Shared) -> None:
    ran = Ran(shared.seen())
    await (await filled(make, 30)).execute(ran, n_jobs=1)
    assert ran.ids == list(range(1, 31))
    assert ran.keys == [{"number": number} for number in range(30)]


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (1, 1), (7, 7), (20, 20), (500, 20), (-1, 20)])
async def test_max_experiments_counts_what_a_call_starts(
    make: Make, target: Target, most: int, expected: int, shared: Shared
) -> None:
    experimenter = await filled(make, 20)
    ran = Ran(shared.seen())
    summary = await experimenter.execute(ran, max_experiments=most)
    assert summary.done == len(ran.ids) == expected
    assert (await audit(target)).get("created", 0) == 20 - expected


async def test_max_experiments_counts_tries_again(make: Make, target: Target) -> None:
    async def fail(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        raise ValueError("no")

    experimenter = await filled(make, 5)
    summary = await experimenter.execute(fail, max_experiments=3, n_jobs=1, retries=10)
    assert (summary.retried, summary.error, summary.done) == (3, 0, 0)
    assert await audit(target) == {"created": 5}


async def test_random_order_covers_all_rows_and_is_not_that_of_the_ids(make: Make, shared: Shared) -> None:
    experimenter = await filled(make, 100)
    first, second = Ran(shared.seen()), Ran(shared.seen())
    await experimenter.execute(first, random_order=True, n_jobs=1)
    assert sorted(first.ids) == list(range(1, 101))
    await experimenter.reset_experiments("all")
    await experimenter.execute(second, random_order=True, n_jobs=7)
    assert sorted(second.ids) == list(range(101, 201))
    assert first.ids != sorted(first.ids)
    assert [i - 100 for i in second.ids] != first.ids


def most_at_once(seen: Seen) -> int:
    return max(accumulate(1 if word == "in" else -1 for word in seen))


@pytest.mark.parametrize("jobs", [1, 3])
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_n_jobs_experiments_run_at_once_and_never_more(
    make: Make, shared: Shared, jobs: int, asynchronous: bool
) -> None:
    experimenter = await filled(make, 12)
    seen, together = shared.seen(), [shared.seen() for _ in range(12 // jobs)]

    def enter(keys: Keys) -> Seen:
        seen.append("in")
        group = next(group for group in together if len(group) < jobs)
        group.append(keys["number"])
        return group

    def run(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
        group = enter(keys)
        while len(group) < jobs:
            time.sleep(0.005)
        seen.append("out")

    async def run_later(keys: Keys, results: ResultProcessor, _: Keys) -> None:
        group = enter(keys)
        await until(lambda: len(group) == jobs)
        seen.append("out")

    function: Any = run_later if asynchronous else run
    assert (await experimenter.execute(function, n_jobs=jobs)).done == 12
    assert most_at_once(seen) == jobs


@pytest.mark.parametrize("jobs", [0, -2, True, 1.5])
async def test_an_impossible_n_jobs_is_refused(make: Make, jobs: Any, shared: Shared) -> None:
    experimenter = await filled(make, 1)
    with pytest.raises(InvalidConfigError, match="n_jobs"):
        await experimenter.execute(Ran(shared.seen()), n_jobs=jobs)


async def test_nothing_to_run_is_no_error(make: Make, shared: Shared) -> None:
    experimenter = await filled(make, 3)
    await experimenter.execute(Ran(shared.seen()))
    ran = Ran(shared.seen())
    summary = await experimenter.execute(ran)
    assert (summary.done, ran.ids) == (0, [])


# ----------------------------------------------------------------------------------------------- where


async def with_pairs(make: Make) -> Experimenter:
    experimenter = make(keyfields=PAIRS)
    values = [(1, "a"), (2, "a"), (1, "b"), (2, "b"), (1, None), (None, "a")]
    await experimenter.fill_table_with_rows([{"number": number, "kind": kind} for number, kind in values])
    return experimenter


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"kind": "a"}, [1, 2, 6]),
        ({"kind": "a", "number": 1}, [1]),
        ({"number": "2"}, [2, 4]),
        ({"kind": ["a", "b"]}, [1, 2, 3, 4, 6]),
        ({"kind": None}, [5]),
        ({"number": [None, 2]}, [2, 4, 6]),
        ({"kind": "A"}, []),
        ({"kind": []}, []),
        ({}, [1, 2, 3, 4, 5, 6]),
        ({"kind": "a' OR '1'='1"}, []),
        ({"kind": 'a" OR 1=1 --'}, []),
        ({"kind": "%"}, []),
    ],
)
async def test_where_takes_exactly_the_rows_with_those_values(
    make: Make, where: dict[str, Any], ids: list[int], shared: Shared
) -> None:
    experimenter = await with_pairs(make)
    ran = Ran(shared.seen())
    await experimenter.execute(ran, where=where)
    assert sorted(ran.ids) == ids


async def test_an_unknown_field_or_an_impossible_value_in_where_is_named(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await with_pairs(make)
    with pytest.raises(ParameterCombinationError, match=r"'knid'.*did you mean 'kind'"):
        await experimenter.execute(Ran(shared.seen()), where={"knid": "a"})
    with pytest.raises(ParameterCombinationError, match=r"'number'.*one"):
        await experimenter.execute(Ran(shared.seen()), where={"number": "one"})
    with pytest.raises(ParameterCombinationError, match=r"'; DROP TABLE"):
        await experimenter.execute(Ran(shared.seen()), where={"'; DROP TABLE experiments; --": 1})
    assert await statuses(target) == {"created": 6}


async def test_where_on_an_indexed_keyfield(make: Make, shared: Shared) -> None:
    kinds = {"number": PAIRS["number"], "kind": PAIRS["kind"] | {"index": True}}
    experimenter = make(keyfields=kinds)
    rows = [{"number": number, "kind": kind} for number in range(20) for kind in "ab"]
    await experimenter.fill_table_with_rows(rows)
    ran = Ran(shared.seen())
    await experimenter.execute(ran, where={"kind": "b"})
    assert {keys["kind"] for keys in ran.keys} == {"b"}
    assert len(ran.keys) == 20


# ------------------------------------------------------------------------------------------ ids, statuses


@pytest.mark.parametrize(("wanted", "ids"), [([2, 5], [2, 5]), ((5, 2, 2), [2, 5]), ([3, 999], [3]), ([], [])])
async def test_experiment_ids_takes_those_and_no_others(
    make: Make, wanted: Any, ids: list[int], shared: Shared
) -> None:
    experimenter = await filled(make, 6)
    ran = Ran(shared.seen())
    await experimenter.execute(ran, experiment_ids=wanted)
    assert sorted(ran.ids) == ids


async def test_ids_and_where_go_together_and_ended_rows_are_left_alone(make: Make, shared: Shared) -> None:
    experimenter = await with_pairs(make)
    await experimenter.execute(Ran(shared.seen()), experiment_ids=[1])
    ran = Ran(shared.seen())
    await experimenter.execute(ran, experiment_ids=iter([1, 2, 3]), where={"kind": "a"})
    assert ran.ids == [2]


async def test_from_status_paused_continues_each_row_once_even_if_it_pauses_again(
    make: Make, target: Target, shared: Shared
) -> None:
    experimenter = await filled(make, 8)
    await experimenter.execute(Ran(shared.seen(), ExperimentStatus.PAUSED), max_experiments=5)
    assert await audit(target) == {"paused": 5, "created": 3}
    again = Ran(shared.seen(), ExperimentStatus.PAUSED)
    summary = await experimenter.execute(again, from_status="paused", n_jobs=2)
    assert (summary.paused, sorted(again.ids)) == (5, [1, 2, 3, 4, 5])
    last = Ran(shared.seen())
    summary = await experimenter.execute(last, from_status="paused", where={"number": [1, 2, 7]})
    assert (summary.done, sorted(last.ids)) == (2, [2, 3])
    assert await audit(target) == {"paused": 3, "created": 3, "done": 2}


async def test_rows_that_are_to_wait_are_passed_over(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await filled(make, 4)
    await experimenter.execute(Ran(shared.seen(), ExperimentStatus.CREATED), experiment_ids=[2])
    ran = Ran(shared.seen())
    await experimenter.execute(ran)
    assert sorted(ran.ids) == [1, 3, 4]
    await change(target, 'UPDATE "experiments" SET "_not_before" = NULL')
    late = Ran(shared.seen())
    await experimenter.execute(late)
    assert late.ids == [2]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"from_status": "pausd"}, "did you mean 'paused'"),
        ({"until": "emtpy"}, "did you mean 'empty'"),
        ({"retrys": 3}, "did you mean.*retries"),
        ({"timeout": -1}, "timeout"),
        ({"grace": "long"}, "grace"),
    ],
)
async def test_unknown_or_impossible_keywords_are_refused_before_a_row_is_taken(
    make: Make, target: Target, keywords: dict[str, Any], words: str, shared: Shared
) -> None:
    experimenter = await filled(make, 2)
    with pytest.raises(InvalidConfigError, match=words):
        await experimenter.execute(Ran(shared.seen()), **keywords)
    assert await statuses(target) == {"created": 2}


async def test_what_is_no_function_is_refused(make: Make, target: Target) -> None:
    experimenter = await filled(make, 2)
    with pytest.raises(InvalidConfigError, match="must be a function"):
        await experimenter.execute("run")  # type: ignore[arg-type]
    assert await statuses(target) == {"created": 2}


@pytest.mark.parametrize("provider", ["postgresql", "mysql"])
@pytest.mark.in_process_only("a claim is the same whatever runs the functions")
async def test_rows_that_others_have_locked_for_a_moment_are_no_empty_table(
    make: Make, target: Target, shared: Shared
) -> None:
    """A claim passes over them; those that many others are just claiming, for instance."""
    experimenter = make(keyfields=numbers(2))
    await experimenter.fill_table_from_config()
    ran = shared.seen()
    async with locked(target, 2):
        call = asyncio.create_task(experimenter.execute(Ran(ran), n_jobs=2, poll_interval=0.2))
        await eventually(lambda: len(ran) == 1)
        done, _ = await asyncio.wait([call], timeout=1.0)
        assert not done
    assert (await call).done == 2
    assert await audit(target) == {"done": 2}
