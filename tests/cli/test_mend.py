"""`retry`, `reset`, `delete`, `cancel`, `release` and `stop`: what they change, what they ask, what they say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor
from tests.cli.conftest import MakeShell
from tests.cli.shell import Shell
from tests.contract.support import eventually

sqlite_only = pytest.mark.parametrize("provider", ["sqlite"])


async def odd_ones_fail(keys: dict[str, Any], results: ResultProcessor, _: dict[str, Any]) -> None:
    await results.process_logs({"steps": {"step": 1, "note": "begun"}})
    await results.process_results({"result": keys["number"] * 0.5})
    if keys["number"] % 2:
        raise ValueError(f"{keys['number']} is odd")


async def waits(_keys: dict[str, Any], results: ResultProcessor, _: dict[str, Any]) -> None:
    await eventually(lambda: results.should_stop, 120)


async def filled(shell: Shell) -> dict[str, int]:
    """Ten rows of which four have failed."""
    async with shell.experimenter() as experimenter:
        await experimenter.fill_table_from_config()
        await experimenter.execute(odd_ones_fail, max_errors=-1)
        return await experimenter.counts()


async def counts(shell: Shell) -> dict[str, int]:
    async with shell.experimenter() as experimenter:
        return {status: number for status, number in (await experimenter.counts()).items() if number}


async def runs(experimenter: Experimenter, number: int) -> bool:
    return (await experimenter.counts())["running"] == number


async def stand(experimenter: Experimenter, wanted: dict[int, str]) -> bool:
    table = (await experimenter.get_table()).set_index("ID")["status"]
    return {number: table[number] for number in wanted} == wanted


@asynccontextmanager
async def at_work(shell: Shell, running: int = 3) -> AsyncIterator[Experimenter]:
    """A worker that runs so many rows until it is told to stop, beside an experimenter that looks on."""
    async with shell.experimenter() as looks_on:
        await looks_on.fill_table_from_config()
        async with shell.experimenter() as worker:
            run = asyncio.create_task(
                worker.execute(
                    waits, n_jobs=running, max_experiments=running, heartbeat_interval=0.2, lease=5.0, progress=False
                )
            )
            await eventually(lambda: runs(looks_on, running))
            yield looks_on
            await worker.stop()
            await run


async def test_retry_puts_errors_back_under_their_ids(shell: Shell) -> None:
    assert (await filled(shell))["error"] == 4
    some = await asyncio.to_thread(shell.run, "retry", "--where", "number=1", "--where", "kind=a")
    assert some.stdout.startswith("1 row put back")
    assert shell.json("retry") == {"retried": 3}
    assert shell.run("retry").stdout == "No such rows are in error: nothing was changed.\n"
    assert await counts(shell) == {"created": 4, "done": 6}


async def test_reset_creates_anew_what_was_named_and_nothing_else(shell: Shell) -> None:
    await filled(shell)
    assert shell.json("reset", "--status", "error", "--yes") == {"reset": 4}
    assert await counts(shell) == {"created": 4, "done": 6}
    async with shell.experimenter() as experimenter:
        assert min(await experimenter.ids("created")) > 10
        left = set((await experimenter.get_logtable("steps"))["experiment_id"])
        assert left == set(await experimenter.ids("done"))


async def test_delete_takes_ids_ranges_and_conditions(shell: Shell) -> None:
    await filled(shell)
    assert shell.json("delete", "1", "3-4", "--yes") == {"deleted": 3}
    assert shell.json("delete", "--status", "error", "--where", "kind=b", "--yes") == {"deleted": 1}
    async with shell.experimenter() as experimenter:
        assert await experimenter.ids() == [2, 5, 6, 7, 9, 10]


@sqlite_only
async def test_what_deletes_asks_first_and_says_how_much(shell: Shell) -> None:
    await filled(shell)
    for answer, code, left in (("n", 1, 10), ("y", 0, 0)):
        terminal = shell.terminal("delete", "--status", "all", columns=120)
        terminal.wait_for("Delete 10 rows (6 done, 4 error) with their results and logs?")
        terminal.type(f"{answer}\n")
        await asyncio.to_thread(terminal.end, code)
        assert sum((await counts(shell)).values()) == left


@sqlite_only
async def test_where_nobody_can_be_asked_nothing_is_deleted(shell: Shell) -> None:
    before = await filled(shell)
    told = shell.run("reset", "--status", "done", code=2).stderr
    assert "6 rows (6 done)" in told
    assert "--yes" in told
    assert await counts(shell) == {status: number for status, number in before.items() if number}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("delete",), "--status all"),
        (("delete", "--status", "eror", "--yes"), "'error'"),
        (("delete", "--where", "knd=a", "--yes"), "'kind'"),
        (("delete", "--where", "kind", "--yes"), "column=value"),
        (("delete", "--where", "number=many", "--yes"), "'number'"),
        (("delete", "seven", "--yes"), "'seven' is no ID"),
        (("delete", "9-3", "--yes"), "goes upwards"),
        (("delete", "", "--status", "all", "--yes"), "'' is no ID"),
        (("delete", "3", "--status", "", "--yes"), "--status: no status ''"),
        (("delete", "--where", "number=1:2", "--yes"), "'number'"),
        (("reset", ",", "--status", "all", "--yes"), "'' is no ID"),
        (("retry", ""), "'' is no ID"),
        (("logs", "steps", ""), "'' is no ID"),
        (("show", ""), "'' is no ID"),
        (("run", "experiment.py", "--ids", ""), "'' is no ID"),
        (("unpause", "experiment.py", ""), "'' is no ID"),
        (("export", "rows.csv", "--status", ""), "no status ''"),
        (("cancel",), "--where"),
        (("cancel", ""), "'' is no ID"),
        (("stop",), "--all"),
    ],
)
async def test_what_cannot_be_understood_changes_nothing(looked_at: Shell, words: tuple[str, ...], said: str) -> None:
    before = await counts(looked_at)
    assert said in looked_at.run(*words, code=2).stderr
    assert await counts(looked_at) == before


async def test_cancel_and_release_reach_a_worker_elsewhere(shell: Shell) -> None:
    async with at_work(shell) as looks_on:
        cancelled = await asyncio.to_thread(shell.run, "cancel", "1", "9")
        assert cancelled.stdout == "The workers of 1 row were asked to end them.\n"
        assert cancelled.stderr == "Not running, and left alone: 9\n"
        released = await asyncio.to_thread(shell.json, "release", "--where", "kind=b", "--yes")
        assert released == {"released": [2]}
        await eventually(lambda: stand(looks_on, {1: "error", 2: "created", 3: "running"}))


@sqlite_only
async def test_to_cancel_by_a_condition_is_asked_for(shell: Shell) -> None:
    async with at_work(shell):
        refused = await asyncio.to_thread(shell.run, "cancel", "--where", "kind=a", code=2)
        assert "Have 2 rows ended as error" in refused.stderr


async def test_stop_waits_for_workers_named_by_machine_or_id(shell: Shell) -> None:
    async with at_work(shell) as looks_on:
        [worker] = [each for each in await looks_on.workers() if each.running]
        wrong = await asyncio.to_thread(shell.run, "stop", worker.machine + "x", code=1)
        assert repr(worker.machine) in wrong.stderr
        done = await asyncio.to_thread(shell.json, "stop", str(worker.id)[:8], "--wait", "20")
        assert done["asked"] == [str(worker.id)]  # as a number jq would round it
        await eventually(lambda: runs(looks_on, 0))


@sqlite_only
async def test_stop_takes_an_empty_word_for_no_worker(shell: Shell) -> None:
    async with at_work(shell) as looks_on:
        assert "''" in (await asyncio.to_thread(shell.run, "stop", "", code=1)).stderr
        assert {each.stop_requested for each in await looks_on.workers()} == {None}


async def test_selections_are_told_before_they_are_made(shell_in: MakeShell) -> None:
    shell = shell_in()
    await filled(shell)
    async with shell.experimenter() as experimenter:
        assert (await experimenter.count_selected("error", where={"kind": "a"}))["error"] == 2
        assert sum((await experimenter.count_selected(ids=[1, 2, 77])).values()) == 2
        assert await experimenter.ids("done", where={"kind": "b"}) == [2, 6, 10]
