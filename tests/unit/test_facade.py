"""Wrong arguments of the facade, each one clear error; nothing is opened for them that stays open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from asyncexp import Experimenter, ResultProcessor
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseConnectionError, InvalidConfigError, ParameterCombinationError
from tests.studies import experimenter, write_configuration


async def nothing(*_: Any) -> None: ...


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: e.execute(nothing, max_experiments=-2), InvalidConfigError, "max_experiments=-2"),
        (lambda e: e.execute(nothing, max_experiments="all"), InvalidConfigError, "max_experiments='all'"),
        (lambda e: e.execute(nothing, n_jobs=0), InvalidConfigError, "n_jobs=0"),
        (lambda e: e.execute(nothing, experiment_ids=["x"]), ParameterCombinationError, "whole numbers"),
        (lambda e: e.execute(nothing, where="number = 1"), ParameterCombinationError, "where is a dict"),
        (lambda e: e.execute(nothing, progress="yes"), InvalidConfigError, "progress='yes'"),
        (lambda e: e.execute("nothing"), InvalidConfigError, "must be a function"),
        (lambda e: e.cancel([None]), ParameterCombinationError, "whole numbers"),
        (lambda e: e.reset_experiments(ids=["1; DROP TABLE x"]), ParameterCombinationError, "whole numbers"),
        (lambda e: e.get_table("status = 'done'"), ParameterCombinationError, "where is a dict"),
    ],
)
async def test_a_wrong_argument_is_one_clear_error(
    sqlite_target: Target,
    tmp_path: Path,
    call: Callable[[Experimenter], Awaitable[Any]],
    error: type[Exception],
    words: str,
) -> None:
    async with experimenter(tmp_path, sqlite_target) as one:
        await one.fill_table_from_config()
        with pytest.raises(error, match=words):
            await call(one)
        assert (await one.counts())["created"] == 10


async def test_a_table_dropped_under_its_worker_is_filled_and_run_again(sqlite_target: Target, tmp_path: Path) -> None:
    async with experimenter(tmp_path, sqlite_target) as one:
        for _ in range(2):
            await one.fill_table_from_config()
            assert (await one.execute(nothing)).done == 10
            assert [worker.state for worker in await one.workers()] == ["live"]
            await one.delete_table()


async def test_stop_takes_the_ids_of_workers(sqlite_target: Target, tmp_path: Path) -> None:
    async with experimenter(tmp_path, sqlite_target) as one:
        await one.fill_table_from_config()
        await one.execute(nothing, max_experiments=1)
        [worker] = await one.workers()
        assert await one.stop(workers=[worker.id, worker.id + 1]) == [worker.id]


def _take_away(file: Path, how: str) -> None:
    if how == "deleted":
        file.unlink(missing_ok=True)
    elif file.exists():
        file.rename(file.with_name("elsewhere.db"))
    if how == "replaced":
        file.touch()


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
async def test_a_file_that_goes_away_under_its_worker_ends_the_run_with_one_error(
    sqlite_target: Target, tmp_path: Path, how: str
) -> None:
    file = Path(sqlite_target.database)
    async with experimenter(tmp_path, sqlite_target) as one:
        await one.fill_table_from_config()

        async def takes_it_away(keyfields: dict[str, Any], results: ResultProcessor, custom: Any) -> None:
            _take_away(file, how)
            await results.process_results({"result": 1.0})

        with pytest.raises(DatabaseConnectionError, match=r"experiments\.db was moved, deleted or replaced"):
            await one.execute(takes_it_away, n_jobs=1, grace=0.1)


async def test_closed_while_first_calls_open_it_nothing_stays_open(sqlite_target: Target, tmp_path: Path) -> None:
    one = experimenter(tmp_path, sqlite_target)
    await one.create_table()
    await one.aclose()
    for steps in range(40):
        calls = [asyncio.create_task(one.counts()) for _ in range(3)]
        for _ in range(steps):
            await asyncio.sleep(0)
        await one.aclose()
        for failure in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(failure, (dict, DatabaseConnectionError)), failure


async def test_a_log_file_that_cannot_be_written_costs_the_line_and_nothing_else(
    sqlite_target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's own handler raises to whoever logs: the thread that gives the sign of life ended of it."""
    gone = tmp_path / "gone"
    name = f"asyncexp-tests-{tmp_path.name}"
    made = Experimenter(write_configuration(tmp_path, sqlite_target), logger_name=name, log_file=gone / "run.log")
    gone.rmdir()
    async with made:
        await made.fill_table_from_config()  # says how many
        assert (await made.execute(nothing, n_jobs=1)).done == 10
    told = capsys.readouterr().err
    assert "10 rows successfully added" in told
    assert told.count("No such file or directory; its lines are lost") == 1
    assert "Traceback" not in told


async def test_a_log_file_on_a_full_disk_costs_its_lines_and_nothing_else(
    sqlite_target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"asyncexp-tests-{tmp_path.name}"
    made = Experimenter(write_configuration(tmp_path, sqlite_target), logger_name=name, log_file="/dev/full")
    async with made:
        await made.fill_table_from_config()
        assert (await made.execute(nothing, n_jobs=1)).done == 10
    told = capsys.readouterr().err
    assert told.count("/dev/full: No space left on device; its lines are lost") == 1
    assert "Traceback" not in told
