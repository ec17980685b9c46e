"""What an `Experimenter` knows of its runs from memory: `snapshot`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor, Summary
from asyncexp.experiment import Running, Snapshot
from asyncexp.store.study import utc
from asyncexp.worker import TELL_SECONDS
from tests.contract.conftest import Make
from tests.contract.functions import nothing
from tests.contract.shared import Gate, Seen, Shared
from tests.contract.support import Keys, eventually, numbers


@dataclass(frozen=True)
class Tells:
    """Tells how far it is, waits to be let go; every odd number fails before."""

    began: Seen
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        if keys["number"] % 2:
            raise ValueError(f"number {keys['number']}\n is odd")
        await results.heartbeat(keys["number"] / 10, f"at {keys['number']}")
        self.began.append(keys["number"])
        await self.go_on.passed()


async def snapshot(experimenter: Experimenter) -> Snapshot:
    """Of either class: the blocking one is called in a thread."""
    found: Any = experimenter.snapshot()
    taken = await found if inspect.isawaitable(found) else found
    assert isinstance(taken, Snapshot)
    return taken


def began(running: Running) -> datetime:
    assert running.started is not None
    return running.started


async def soon(experimenter: Experimenter, condition: Callable[[Snapshot], bool]) -> Snapshot:
    """The first that is so."""
    taken = Snapshot((), (), None, None, 0.0)

    async def is_so() -> bool:
        nonlocal taken
        taken = await snapshot(experimenter)
        return condition(taken)

    await eventually(is_so)
    return taken


async def test_what_runs_is_known_with_what_it_tells(make: Make, shared: Shared) -> None:
    function = Tells(shared.seen(), shared.gate())
    experimenter = make(keyfields=numbers(5), n_jobs=3, execution={"heartbeat_interval": 0.1, "lease": 30})
    await experimenter.fill_table_from_config()
    before = utc()
    run = asyncio.create_task(experimenter.execute(function))
    seen = await soon(
        experimenter,
        lambda taken: (
            {each.message for each in taken.running} == {"at 0", "at 2", "at 4"}
            and len(taken.failures) == 2
            and taken.beat_seconds is not None
        ),
    )
    [worker] = [worker for worker in await experimenter.workers() if worker.state == "live"]
    assert list(seen.running) == sorted(seen.running, key=began), "those that began first come first"
    for running, number in zip(sorted(seen.running, key=lambda each: each.id), (0, 2, 4), strict=True):
        assert (running.id, running.attempt, running.worker) == (number + 1, 1, worker.id)
        assert running.keyfields == {"number": number}
        assert running.progress == number / 10
        assert running.started is not None
        assert running.heartbeat is not None
        assert before <= running.started <= running.heartbeat <= utc()
    assert {(each.id, each.attempt, each.line) for each in seen.failures} == {(2, 1, " is odd"), (4, 1, " is odd")}
    assert len({each.place for each in seen.failures}) == 1, "they failed alike"
    assert seen.away_seconds is None
    assert seen.beat_seconds is not None
    assert 0 <= seen.beat_seconds < 30
    assert seen.lease_seconds == 30
    function.go_on.open()
    assert (await run).done == 3
    after = await snapshot(experimenter)
    assert after.running == ()
    assert after.failures == (), "of the calls under way alone"


@pytest.mark.executes_nothing
async def test_nothing_runs_nothing_is_known(make: Make) -> None:
    experimenter = make(keyfields=numbers(1))
    empty = Snapshot((), (), None, None, 0.0)
    assert await snapshot(experimenter) == empty
    await experimenter.fill_table_from_config()
    taken = await snapshot(experimenter)
    assert (taken.running, taken.failures, taken.away_seconds) == ((), (), None)


class Sampled:
    """Looks at a run now and then."""

    sampled = True

    def __init__(self) -> None:
        self.told: list[Summary] = []

    def __call__(self, summary: Summary) -> None:
        self.told.append(summary)


async def test_samples_are_few_and_the_last_is_the_end(make: Make) -> None:
    experimenter = make(keyfields=numbers(200), n_jobs=4)
    await experimenter.fill_table_from_config()
    sampled, every = Sampled(), list[Summary]()
    await experimenter.execute(nothing, max_experiments=100, progress=sampled)
    await experimenter.execute(nothing, progress=every.append)
    assert len(every) > 200, "at each beginning and each end"
    most = 10 + sampled.told[-1].seconds / TELL_SECONDS
    assert len(sampled.told) <= most
    for told in (sampled.told, every):
        assert (told[-1].done, told[-1].running) == (100, 0)
    assert (sampled.told[-1].left, every[-1].left) == (100, 0)
