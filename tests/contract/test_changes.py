"""A study that is changed while others have it open: whoever does not know the change is refused, and told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from asyncexp import ResultProcessor
from asyncexp.db import connect
from asyncexp.db.base import Target
from asyncexp.errors import TableHasWrongStructureError
from tests.contract.conftest import Make
from tests.contract.functions import nothing
from tests.contract.shared import Seen, Shared
from tests.contract.support import eventually
from tests.studies import KEYFIELDS

WIDER = {**KEYFIELDS, "optimizer": {"type": "VARCHAR(20)", "values": ["adam"], "default": "adam"}}


Function = Callable[[dict[str, Any], ResultProcessor, Any], Awaitable[None]]


def _until_told(begun: Seen) -> Function:
    """Notes its ID when it begins, and ends when it is told to stop."""

    async def run(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        begun.append(int(results.experiment_id))
        while not results.should_stop:  # noqa: ASYNC110  (what users write)
            await asyncio.sleep(0.01)

    return run


async def test_whoever_does_not_know_a_new_keyfield_adds_takes_and_resets_nothing(make: Make) -> None:
    old, new = make(), make(name="wider.yml", keyfields=WIDER)
    await old.fill_table_from_config()
    await new.migrate()
    row = {"number": 77, "kind": "a"}
    for call in (
        old.fill_table_from_config(),
        old.fill_table_with_rows([row]),
        old.fill_table_from_combination([row]),
        old.add_experiment_and_execute(row, nothing),
        old.execute(nothing),
        old.reset_experiments("created"),
    ):
        with pytest.raises(TableHasWrongStructureError, match="'optimizer' is in the database"):
            await call
    filled = await new.fill_table_from_config()
    assert (filled.added, filled.existed) == (0, 10)
    assert list((await new.get_table())["optimizer"]) == ["adam"] * 10


async def test_a_new_keyfield_stops_the_workers_that_do_not_know_it(make: Make, shared: Shared) -> None:
    old = make(execution={"heartbeat_interval": 0.2, "lease": 2})
    new = make(name="wider.yml", keyfields=WIDER)
    await old.fill_table_from_config()
    begun = shared.seen()
    running = asyncio.create_task(old.execute(_until_told(begun), n_jobs=2))
    await eventually(lambda: len(begun) == 2)
    await new.migrate()
    summary = await asyncio.wait_for(running, 60)
    assert (summary.done, summary.stopped_by) == (2, "stop")


@pytest.mark.executes_nothing
async def test_a_migration_that_cannot_succeed_changes_nothing(make: Make, target: Target) -> None:
    await make().fill_table_from_config()
    database = connect(target)
    before = await database.columns("experiments")
    lacking = make(name="other.yml", resultfields={"result": "DOUBLE", "more": "INT"})  # and no `text`
    with pytest.raises(TableHasWrongStructureError, match="'text' is in the database"):
        await lacking.migrate()
    assert await database.columns("experiments") == before
    await database.close()


async def test_a_stop_asked_for_while_nothing_runs_is_not_for_what_comes_later(make: Make) -> None:
    experimenter = make(execution={"heartbeat_interval": 0.05, "lease": 1})
    await experimenter.fill_table_from_config()
    await experimenter.execute(nothing, max_experiments=1)
    await experimenter.stop()

    async def longer(*_: Any) -> None:
        await asyncio.sleep(0.1)

    summary = await experimenter.execute(longer, n_jobs=3)
    assert (summary.done, summary.stopped_by) == (9, None)


async def test_each_of_several_stops_is_heard(make: Make, shared: Shared) -> None:
    experimenter, other = make(execution={"heartbeat_interval": 0.05, "lease": 1}), make()
    await experimenter.fill_table_from_config()
    begun = shared.seen()
    for turn in range(2):
        running = asyncio.create_task(experimenter.execute(_until_told(begun), n_jobs=1))
        await eventually(lambda: len(begun) > turn)  # noqa: B023
        [worker] = await other.workers()
        assert await other.stop([worker.id]) == [worker.id]
        assert (await asyncio.wait_for(running, 60)).stopped_by == "stop"


async def test_what_others_took_is_not_left(make: Make) -> None:
    one, other = make(), make()
    await one.fill_table_from_config()
    shares = await asyncio.gather(one.execute(nothing, n_jobs=1), other.execute(nothing, n_jobs=1))
    assert sum(share.done for share in shares) == 10
    assert [share.left for share in shares][-1] == 0
    assert (await one.execute(nothing)).left == 0


async def test_a_dropped_table_ends_the_run_that_uses_it(make: Make, shared: Shared) -> None:
    one, other = make(), make()
    await one.fill_table_from_config()
    begun, dropped = shared.gate(), shared.gate()

    async def writes(_: dict[str, Any], results: ResultProcessor, __: Any) -> None:
        begun.open()
        await dropped.passed()
        await results.process_results({"result": 1.0})

    running = asyncio.create_task(one.execute(writes))
    await begun.passed()
    await other.delete_table()
    dropped.open()
    with pytest.raises(Exception, match="experiments"):
        await asyncio.wait_for(running, 60)
    await one.aclose()
