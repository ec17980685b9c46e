"""An experiment that ends leaves nothing behind that only the garbage collector could find.

With a cycle in each, thousands of experiments a second kept it busy for a third of the time.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from asyncexp import ResultProcessor, SyncResultProcessor
from asyncexp.db.base import Target
from tests.contract.support import Keys, numbers
from tests.studies import experimenter

ROWS = 200


async def with_a_task(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    await results.process_logs({"steps": {"step": 1}})
    await results.heartbeat(0.5)
    await results.process_results({"result": float(keys["number"])})


def plainly(keys: Keys, results: SyncResultProcessor, _: Keys) -> None:
    results.process_logs({"steps": {"step": 1}})
    results.heartbeat(0.5)
    results.process_results({"result": float(keys["number"])})


@contextmanager
def collecting() -> Iterator[list[Any]]:
    """What the garbage collector finds of that which was made inside; there when the block has ended."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@pytest.mark.parametrize(
    ("function", "pool"),
    [(with_a_task, "task"), (plainly, "task"), (plainly, "process")],
    ids=["task", "thread", "process"],
)
async def test_what_ends_is_gone(
    sqlite_target: Target, tmp_path: Path, function: Callable[..., Any], pool: Literal["task", "process"]
) -> None:
    async with experimenter(tmp_path, sqlite_target, keyfields=numbers(ROWS + 10)) as made:
        await made.fill_table_from_config()
        await made.execute(function, pool=pool, n_jobs=2, max_experiments=10)
        with collecting() as found:
            assert (await made.execute(function, pool=pool, n_jobs=2)).done == ROWS
    kinds = Counter(type(each).__qualname__ for each in found)
    assert max(kinds.values(), default=0) < ROWS / 2, kinds.most_common(10)
