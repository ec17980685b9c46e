"""How often a worker goes to its database: counted on the line, not timed. Each trip is a network's delay."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncexp import ResultProcessor
from asyncexp.db import sqlite
from asyncexp.db.base import Target
from asyncexp.store.study import Runner, Study, utc
from tests.contract.support import Keys, eventually, numbers
from tests.proxy import Proxy
from tests.studies import experimenter

SLOW = {"heartbeat_interval": 50, "lease": 200}
"""No sign of life is counted."""
AT_THE_END = 40
"""Trips, at most, that a call costs whatever it runs: the last looks, and what it says of itself."""


class Counting(Proxy):
    """Counts what clients send: a driver waits for the answer before it sends more."""

    trips = 0

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.trips += 1
            writer.write(data)
            await writer.drain()


async def result(keys: Keys, results: ResultProcessor, _: Keys) -> None:
    await results.process_results({"result": float(keys["number"])})


async def all_run(target: Target, folder: Path, at_once: int, count: int, proxy: Counting | None = None) -> None:
    """Runs `count` experiments; counted from when the worker is there and the statements are prepared."""
    study: dict[str, Any] = {"keyfields": numbers(count + at_once), "execution": SLOW}
    async with experimenter(folder, target, **study) as made:
        await made.fill_table_from_config()
        assert (await made.execute(result, n_jobs=at_once, max_experiments=at_once)).done == at_once
        if proxy is not None:
            proxy.trips = 0
        assert (await made.execute(result, n_jobs=at_once)).done == count


@pytest.mark.parametrize(
    ("provider", "at_once", "trips"),
    [("postgresql", 1, 2), ("postgresql", 200, 0.02), ("mysql", 1, 10), ("mysql", 200, 0.05)],
)
async def test_trips_to_a_server(target: Target, tmp_path: Path, at_once: int, trips: float) -> None:
    """One at a time: a transaction for its result, one for its end and the next claim. 200 at once share them."""
    count = 100 if at_once == 1 else 4_000
    async with Counting(target) as proxy:
        await all_run(proxy.target, tmp_path, at_once, count, proxy)
        assert proxy.trips <= 1.1 * trips * count + AT_THE_END
        assert proxy.trips >= 0.5 * trips * count  # or else they were not counted


@pytest.mark.parametrize(("at_once", "transactions"), [(1, 2), (200, 0.01)])
async def test_transactions_on_sqlite(
    sqlite_target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, transactions: float
) -> None:
    begun: list[str] = []

    class Session(sqlite.Session):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith("BEGIN"):
                begun.append(sql)
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite, "Session", Session)
    count = 100 if at_once == 1 else 4_000
    await all_run(sqlite_target, tmp_path, at_once, count)
    whole = count + at_once
    assert 0.5 * transactions * whole <= len(begun) <= 1.1 * transactions * whole + AT_THE_END


async def test_a_sign_of_life_is_one_statement(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many experiments run. MariaDB has no UPDATE that answers, and takes two."""
    beats: list[str] = []

    def noting(inner: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def noted(study: Study, runner: Runner, text: str, **values: Any) -> Any:
            if '"requests"' in text or '"ended_done"' in text:
                beats.append(text)
            return await inner(study, runner, text, **values)

        return noted

    for name in ("fetch", "execute"):
        monkeypatch.setattr(Study, name, noting(getattr(Study, name)))

    async def until_it_has_beaten(_: Keys, __: ResultProcessor, ___: Keys) -> None:
        beats.clear()
        await eventually(lambda: sum("UPDATE" in text for text in beats) > 3)
        updates = sum("UPDATE" in text for text in beats)
        assert abs(len(beats) - updates * (2 if target.provider == "mysql" else 1)) <= 1  # one is on its way

    beat_often = {"heartbeat_interval": 0.05, "lease": 20}
    async with experimenter(tmp_path, target, keyfields=numbers(1), execution=beat_often) as made:
        await made.fill_table_from_config()
        assert (await made.execute(until_it_has_beaten)).done == 1


async def test_the_known_clock_moves_as_far_as_an_answer_shows_it_wrong(sqlite_target: Target, tmp_path: Path) -> None:
    """A slow answer tells little of when the database read its clock."""
    async with experimenter(tmp_path, sqlite_target, keyfields=numbers(1)) as made:
        await made.create_table()
        [session] = made._sessions.values()
        study, hour = session.study, timedelta(hours=1)
        before = study._clock_offset
        study.clock_is(study.now(), utc() - hour)
        assert study._clock_offset == before
        ahead = study.bound(utc() + 2 * hour)
        study.clock_is(ahead, utc() - hour)
        assert timedelta() <= 2 * hour - study._clock_offset < hour / 60
        study.clock_is(study.bound(utc() - 2 * hour), utc())
        assert abs(study._clock_offset + 2 * hour) < hour / 60
