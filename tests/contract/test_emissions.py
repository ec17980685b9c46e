"""Energy of experiments, wherever they run: a row for each attempt, shares that never exceed the whole, and a tracker
that fails or hangs and costs nobody anything.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from asyncexp import Experimenter, ExperimentStatus, ResultProcessor
from asyncexp.db.base import Outage, Target, Transaction
from asyncexp.emissions import Settings, Tracker, measuring
from asyncexp.emissions.amounts import NOTHING, Spent
from asyncexp.energy import Energy
from asyncexp.store import energy
from asyncexp.store.study import Study
from tests.contract.conftest import Make
from tests.contract.functions import Computes, Flaky, Waits, done, nothing
from tests.contract.shared import Shared
from tests.contract.sql import fetch as sql
from tests.contract.support import child, eventually, numbers
from tests.contract.test_rescue import began, keywords
from tests.studies import experimenter as new_experimenter

GERMAN = {"country_iso_code": "DEU"}
Keys = dict[str, Any]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "WARM_UP_AFTER_SECONDS", 0.0)


def energy_of(experimenter: Experimenter) -> Energy:
    [session] = experimenter._sessions.values()
    assert session.energy is not None
    return session.energy


async def warm(make: Make, count: int = 4, **study: Any) -> Experimenter:
    """One whose tracker measures; its table has so many rows, and none has run."""
    experimenter = make(**{"codecarbon": GERMAN, "keyfields": numbers(count), **study})
    await experimenter.fill_table_from_config()
    await experimenter.execute(nothing, max_experiments=0)
    account = energy_of(experimenter)._account
    await eventually(lambda: account.ready or account.off)
    assert account.ready
    return experimenter


async def rows_of(experimenter: Experimenter) -> pd.DataFrame:
    return await experimenter.get_codecarbon_table()


def measured(experimenter: Experimenter) -> float:
    """kWh that the tracker has measured altogether, of the whole machine."""
    total = energy_of(experimenter)._account.tracker._before
    return total.cpu + total.gpu + total.ram


async def pairs(target: Target) -> list[tuple[int, int]]:
    rows = await sql(target, 'SELECT "experiment_id", "_attempt" FROM "experiments_codecarbon" ORDER BY 1, 2')
    return [(int(experiment_id), int(attempt)) for experiment_id, attempt in rows]


async def sleeps(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await asyncio.sleep(0.05)
    sum(range(300_000))


# ------------------------------------------------------------------------------------------------ the rows


async def test_every_experiment_has_a_row_with_its_energy_and_what_codecarbon_says(make: Make) -> None:
    experimenter = await warm(make)
    assert (await experimenter.execute(sleeps, n_jobs=2)).done == 4
    table = await rows_of(experimenter)
    assert sorted(table["experiment_id"]) == [1, 2, 3, 4]
    assert set(table["_attempt"]) == {1}
    assert set(table["country_iso_code"]) == {"DEU"}
    assert set(table["offline_mode"]) == {True}
    assert (table["duration_seconds"] >= 0.05).all()
    assert table["codecarbon_version"].notna().all()
    parts = table["cpu_energy_kw"] + table["gpu_energy_kw"] + table["ram_energy_kw"]
    assert list(table["energy_consumed_kw"]) == pytest.approx(list(parts))
    joules = table["ram_power_watt"] * table["duration_seconds"]
    assert list(joules) == pytest.approx(list(table["ram_energy_kw"] * 3.6e6))
    rate = table["emissions_kg"] / table["duration_seconds"]
    assert list(rate) == pytest.approx(list(table["emissions_rate_kg_sec"]))
    assert 0 < table["energy_consumed_kw"].sum() <= measured(experimenter)
    assert table["emissions_kg"].sum() > 0
    assert str(table["codecarbon_timestamp"].dtype) == "datetime64[us]"
    started = (await experimenter.get_table())["start_date"].min()
    assert (table["codecarbon_timestamp"] >= started).all()


async def test_one_that_computes_while_another_sleeps_gets_more_of_it(make: Make, shared: Shared) -> None:
    experimenter = await warm(make, 2)
    function = Computes(1.5, shared.seen(), 1 if is_one_by_one(experimenter) else 2)
    assert (await experimenter.execute(function, n_jobs=function.together)).done == 2
    table = (await rows_of(experimenter)).set_index("experiment_id")["energy_consumed_kw"]
    assert table[1] > 2 * table[2] >= 0
    assert table.sum() <= measured(experimenter)


def is_one_by_one(experimenter: Experimenter) -> bool:
    return not isinstance(experimenter, Experimenter)  # a function of the blocking class runs in its caller's thread


async def test_many_short_experiments_each_have_a_row_and_together_no_more_than_the_whole(make: Make) -> None:
    experimenter = await warm(make, 700, logtables={})
    assert (await experimenter.execute(done, n_jobs=20)).done == 700
    table = await rows_of(experimenter)
    assert sorted(table["experiment_id"]) == list(range(1, 701))
    assert 0 < table["energy_consumed_kw"].sum() <= measured(experimenter)


async def test_two_calls_at_once_share_the_same_whole(make: Make) -> None:
    experimenter = await warm(make, 8)
    odd, even = [1, 3, 5, 7], [2, 4, 6, 8]
    await asyncio.gather(*(experimenter.execute(sleeps, n_jobs=2, experiment_ids=ids) for ids in (odd, even)))
    table = await rows_of(experimenter)
    assert sorted(table["experiment_id"]) == list(range(1, 9))
    assert 0 < table["energy_consumed_kw"].sum() <= measured(experimenter)


async def measured_meanwhile(tracker: Tracker, last: asyncio.Future[Any]) -> Spent:
    """What it measures, every second as codecarbon does, until that is done."""
    total = NOTHING
    while not last.done():
        await asyncio.wait([last], timeout=1.0)
        total = total.plus(tracker.measure(), 1.0, 1.0)
    return total


@pytest.mark.parametrize("provider", ["sqlite"])
async def test_two_workers_of_one_machine_together_have_no_more_than_one_tracker_measures(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker's own tracker measures the whole machine: if they did not share it, they would have about twice that.

    RAM is told as so many watts: there the bound is sharp. Power of the CPU is told from its load since a tracker's
    last measurement; each has them at moments of its own, so there a tenth is left for that.
    """
    monkeypatch.chdir(tmp_path)
    study: dict[str, Any] = {"keyfields": numbers(6), "codecarbon": GERMAN, "n_jobs": 1}
    async with new_experimenter(tmp_path, target, **study) as experimenter:
        await experimenter.fill_table_from_config()
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(child("energy", tmp_path, target, **study)) for _ in range(2)]
        tracker = stack.enter_context(closing(Tracker(Settings(GERMAN), logging.getLogger("asyncexp-tests"))))
        tracker.open()
        assert [await worker.told() for worker in workers] == ["ready", "ready"]
        tracker.measure()
        await asyncio.gather(*(worker.tell() for worker in workers))
        summaries = asyncio.gather(*(worker.told() for worker in workers))
        whole = await measured_meanwhile(tracker, summaries)
        done = [summary["done"] for summary in await summaries]
        assert [await worker.ended() for worker in workers] == [0, 0]
    assert sum(done) == 6
    assert min(done) > 0
    columns = "COUNT(*), COUNT(energy_consumed_kw), SUM(ram_energy_kw), SUM(energy_consumed_kw), SUM(emissions_kg)"
    [(rows, known, ram, energies, kilograms)] = await sql(target, f'SELECT {columns} FROM "experiments_codecarbon"')
    assert (rows, known) == (6, 6)
    assert 0 < ram <= whole.ram * 1.01
    assert 0 < energies <= (whole.cpu + whole.gpu + whole.ram) * 1.1
    assert 0 < kilograms <= whole.kilograms * 1.1


async def test_without_a_country_emissions_are_null(make: Make) -> None:
    experimenter = await warm(make, codecarbon={})
    await experimenter.execute(sleeps)
    table = await rows_of(experimenter)
    assert (len(table), table["emissions_kg"].notna().sum(), table["country_name"].notna().sum()) == (4, 0, 0)
    assert table["energy_consumed_kw"].notna().all()


# ------------------------------------------------------------------------------------------------ attempts


async def test_each_attempt_that_ended_here_has_a_row(make: Make, target: Target) -> None:
    experimenter = await warm(make, 2)
    await experimenter.execute(Flaky(1), retries=1)
    assert await pairs(target) == [(1, 1), (1, 2), (2, 1), (2, 2)]


async def pauses(keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus:
    return ExperimentStatus.PAUSED


async def test_a_paused_one_and_its_continuation_have_one_each(make: Make, target: Target) -> None:
    experimenter = await warm(make, 1)
    await experimenter.execute(pauses)
    assert await pairs(target) == [(1, 1)]
    assert await experimenter.unpause_experiment(1, done) is ExperimentStatus.DONE
    assert await pairs(target) == [(1, 1), (1, 2)]


async def test_an_experiment_added_and_executed_has_one(make: Make, target: Target) -> None:
    experimenter = await warm(make, 1)
    assert await experimenter.add_experiment_and_execute({"number": 7}, done) is ExperimentStatus.DONE
    assert await pairs(target) == [(2, 1)]


@pytest.mark.asyncio_only("it waits for a run that goes on meanwhile")
async def test_what_was_taken_away_has_none(make: Make, target: Target, shared: Shared) -> None:
    experimenter = await warm(make, 1)
    held = Waits(shared.gate(), shared.gate())
    run = asyncio.create_task(experimenter.execute(held, max_experiments=1))
    await held.began.passed()
    assert await experimenter.reset_experiments("running") == 1
    held.go_on.open()
    assert (await run).lost == 1
    assert (await experimenter.execute(done)).done == 1
    assert await pairs(target) == [(2, 1)]


async def test_reset_and_delete_take_the_rows_along(make: Make, target: Target) -> None:
    experimenter = await warm(make, 3)
    await experimenter.execute(done)
    assert await pairs(target) == [(1, 1), (2, 1), (3, 1)]
    await experimenter.reset_experiments(ids=[1])
    await experimenter.delete_experiments(ids=[2])
    assert await pairs(target) == [(3, 1)]


async def study_of(experimenter: Experimenter) -> Study:
    [session] = experimenter._sessions.values()
    study: Study = session.study
    return study


async def recorded(study: Study, columns: Any, again: bool, tx: Transaction) -> None:
    await energy.record(study, tx, columns, {"offline_mode": True}, again=again)


@pytest.mark.executes_nothing
async def test_a_row_is_written_once_and_only_for_an_experiment_that_there_is(make: Make, target: Target) -> None:
    experimenter = make(keyfields=numbers(3))
    await experimenter.fill_table_from_config()
    await experimenter.delete_experiments(ids=[2])
    study = await study_of(experimenter)
    columns = [[3, 1, 2], 1, [0.5, 0.25, 0.125], 1e-9, 0.0, None, None]
    for again in (False, True):  # as after an answer that never came
        for part in energy.chunks(study, columns):
            await study.db.run(partial(recorded, study, part, again))
    rows = 'SELECT "experiment_id", "duration_seconds", "energy_consumed_kw" FROM "experiments_codecarbon" ORDER BY 1'
    assert await sql(target, rows) == [(1, 0.25, None), (3, 0.5, None)]


@pytest.mark.asyncio_only("the worker that is killed is another process; who calls for the rest makes no difference")
async def test_a_killed_worker_leaves_no_row_for_its_attempts_and_the_next_has_its_own(
    make: Make, target: Target, tmp_path: Path
) -> None:
    study: dict[str, Any] = {"keyfields": numbers(2), "codecarbon": GERMAN}
    experimenter = await warm(make, **study)
    async with child("run", tmp_path, target, "task_hangs", keywords(n_jobs=2), **study) as worker:
        ids = await began(worker, 2)
        worker.process.kill()
        await worker.process.wait()
        assert (await experimenter.execute(done)).done == 2
    assert await pairs(target) == [(each, 2) for each in sorted(ids)]


# ------------------------------------------------------------------------------- what costs nobody anything


@pytest.fixture
def broken_measurement(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Replaces what codecarbon does at each measurement."""
    from codecarbon.emissions_tracker import BaseEmissionsTracker

    def replaced(by: Callable[[], None]) -> None:
        monkeypatch.setattr(BaseEmissionsTracker, "_measure_power_and_energy", lambda _: by())

    return replaced


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_tracker_that_fails_costs_a_warning_and_nothing_else(
    make: Make, caplog: pytest.LogCaptureFixture, broken_measurement: Any
) -> None:
    experimenter = await warm(make, 8)

    def fails() -> None:
        raise OSError("no counter")

    broken_measurement(fails)
    for _ in range(2):
        assert (await experimenter.execute(done, max_experiments=4)).done == 4
    [told] = warnings_of(caplog)
    assert told.startswith("CodeCarbon failed, and the energy of experiments is no longer recorded")
    assert told.endswith("OSError: no counter")


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """A measurement waits for it; set at the end of the test."""
    let_go = threading.Event()
    yield let_go
    let_go.set()


async def test_a_tracker_that_hangs_is_waited_for_once_by_the_end_of_a_call_and_by_no_experiment(
    make: Make,
    caplog: pytest.LogCaptureFixture,
    broken_measurement: Any,
    stuck: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncexp.energy.SETTLE_SECONDS", 0.2)
    experimenter = await warm(make, 8)
    broken_measurement(stuck.wait)
    for _ in range(2):
        assert (await experimenter.execute(done, max_experiments=4)).done == 4
    [told] = warnings_of(caplog)
    assert "TimeoutError: its measurement takes longer than 0.2 s" in told
    stuck.set()
    await experimenter.aclose()
    await eventually(lambda: not measuring_threads())


async def test_a_tracker_that_hangs_while_it_starts_is_not_waited_for(
    make: Make, caplog: pytest.LogCaptureFixture, broken_measurement: Any, stuck: threading.Event, target: Target
) -> None:
    broken_measurement(stuck.wait)
    experimenter = make(codecarbon=GERMAN, keyfields=numbers(4))
    await experimenter.fill_table_from_config()
    assert (await experimenter.execute(done)).done == 4
    assert not energy_of(experimenter)._account.ready
    await experimenter.aclose()
    assert warnings_of(caplog) == []
    rows = 'SELECT "experiment_id", "energy_consumed_kw", "offline_mode" FROM "experiments_codecarbon" ORDER BY 1'
    assert [(row[0], row[1], bool(row[2])) for row in await sql(target, rows)] == [
        (number, None, True) for number in (1, 2, 3, 4)
    ]


@pytest.mark.in_process_only("whose tracker it is that starts slowly is told by the order of two workers")
async def test_another_workers_tracker_that_starts_slowly_costs_nobody_his_energy(
    make: Make,
    target: Target,
    caplog: pytest.LogCaptureFixture,
    stuck: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("asyncexp.energy.SETTLE_SECONDS", 0.2)
    experimenter, other = await warm(make, 4), make(codecarbon=GERMAN, keyfields=numbers(4))
    opens, begun = Tracker.open, threading.Event()

    def slowly(tracker: Tracker) -> None:
        begun.set()
        stuck.wait()
        opens(tracker)

    monkeypatch.setattr(Tracker, "open", slowly)
    await other.execute(nothing, max_experiments=0)
    await eventually(begun.is_set)
    assert (await experimenter.execute(done)).done == 4
    assert warnings_of(caplog) == []
    assert not energy_of(experimenter)._account.off
    stuck.set()
    account = energy_of(other)._account
    await eventually(lambda: account.ready)
    await eventually(lambda: has_rows(target, 4))


async def has_rows(target: Target, count: int) -> bool:
    return len(await pairs(target)) == count


async def test_without_codecarbon_there_is_a_line_and_everything_else(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    experimenter = make(codecarbon=GERMAN)
    await experimenter.fill_table_from_config()
    assert (await experimenter.execute(done)).done == 10
    account = energy_of(experimenter)._account
    await eventually(lambda: account.off)
    assert (await experimenter.execute(done)).done == 0
    [told] = warnings_of(caplog)
    assert told.startswith("CodeCarbon cannot be imported")
    assert len(await rows_of(experimenter)) == 0


def files_in(folder: Path) -> set[Path]:
    return {file for file in folder.iterdir() if "experiments" not in file.name}


def measuring_threads() -> list[threading.Thread]:
    names = ("asyncexp energy",)
    return [each for each in threading.enumerate() if each.name in names or isinstance(each, threading.Timer)]


async def test_nothing_is_left_no_thread_no_file_no_line(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    experimenter = await warm(make)
    files = files_in(tmp_path)
    await experimenter.execute(sleeps, progress=False)
    assert measuring_threads()
    await experimenter.aclose()
    assert measuring_threads() == []
    assert files_in(tmp_path) <= files
    assert "codecarbon" not in capfd.readouterr().err.casefold()


async def test_the_file_of_codecarbon_has_a_row_for_each_if_that_is_asked_for(make: Make, tmp_path: Path) -> None:
    settings = {**GERMAN, "save_to_file": True, "output_dir": str(tmp_path / "out")}
    experimenter = await warm(make, codecarbon=settings)
    await experimenter.execute(sleeps)
    saved, table = pd.read_csv(tmp_path / "out" / "emissions.csv"), await rows_of(experimenter)
    assert sorted(saved["energy_consumed"]) == pytest.approx(sorted(table["energy_consumed_kw"]))
    assert set(saved["run_id"]) == set(table["run_id"])


async def test_an_outage_costs_no_row_and_doubles_none(
    make: Make, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    experimenter = await warm(make, 3)
    [session] = experimenter._sessions.values()
    run, left = session.study.db.run, [1]

    async def landed_unheard(work: Any, **limits: Any) -> Any:
        """As if the answer to the first transaction with energy had been lost."""
        found = await run(work, **limits)
        if "_recording" in getattr(work, "__qualname__", "") and left:
            left.pop()
            raise Outage("cut", unknown=True, settled_after=0.0)
        return found

    monkeypatch.setattr(session.study.db, "run", landed_unheard)
    await experimenter.execute(done)
    assert not left
    await experimenter.aclose()  # a call does not wait for rows while the database is away; closing does
    assert await pairs(target) == [(1, 1), (2, 1), (3, 1)]
