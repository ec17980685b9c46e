"""Switches that take a safeguard out of asyncexp, for one run of the tests: they must fail then.

A plugin of pytest's: `TEST_CANARY=fence pytest -p tests.canaries …`. Without the variable it does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from pymysql.constants import CLIENT

from asyncexp.db import mysql, postgres, sqlite, whole
from asyncexp.db.base import Dialect, Transaction
from asyncexp.store import flush, rescue, settle, together
from asyncexp.store.claim import ID
from asyncexp.store.flush import Key
from asyncexp.store.study import Study, utc

SWITCH = "TEST_CANARY"


def no_fence() -> None:
    """Whatever anybody sends for any attempt is written."""
    _fence_without("worker", "attempt", "status")


def no_worker_in_the_fence() -> None:
    _fence_without("worker")


def no_attempt_in_the_fence() -> None:
    _fence_without("attempt")


def no_status_in_the_fence() -> None:
    _fence_without("status")


def _fence_without(*left_out: str) -> None:
    conditions = {"worker": '"_worker" = :worker', "status": "\"status\" = 'running'"}
    kept = " AND ".join(["1 = 1", *(text for name, text in conditions.items() if name not in left_out)])

    async def leaky(study: Study, tx: Transaction, worker: int, keys: Iterable[Key], *, wait: bool = True) -> set[Key]:
        wanted = set(keys)
        if not wanted:
            return set()
        text = f'SELECT "ID", "_attempt" FROM {study.main} WHERE {study.member(ID, ":ids")} AND {kept}'
        values = {"ids": study.integers(sorted({key[0] for key in wanted})), "worker": worker}
        found = {(row[0], row[1]) for row in await study.fetch(tx, text, **values)}
        if "attempt" not in left_out:
            return found & wanted
        return {key for key in wanted if key[0] in {number for number, _ in found}}

    def leaky_part(sent: str) -> str:
        runs_as = conditions["worker"].replace(":worker", ":runs_as")
        whole = {"attempt": f'"_attempt" = {sent}."_sent1"', **conditions, "worker": runs_as}
        return " AND ".join(["1 = 1", *(text for name, text in whole.items() if name not in left_out)])

    for module in (flush, settle, rescue):
        _replace(module, "fence", leaky)
    _replace(together, "fence", leaky_part)


def no_found_rows() -> None:
    """MySQL counts the rows that a statement changed, not those that it matched."""
    _replace(mysql, "CLIENT", SimpleNamespace(**(vars(CLIENT) | {"FOUND_ROWS": 0})))


def no_rollback() -> None:
    """What was written before a transaction failed stays."""

    async def commit(link: whole.Link) -> None:
        await link.commit()

    class Session(sqlite.Session):
        def execute(self, sql: str, *parameters: Any) -> Any:
            return super().execute("COMMIT" if sql == "ROLLBACK" else sql, *parameters)

    _replace(whole.Link, "_undo", commit)
    _replace(sqlite, "Session", Session)


def no_database_clock() -> None:
    """Each process takes its own clock for the server's; SQLite has none but the process's."""
    for driver in (postgres.PostgresDriver, mysql.MysqlDriver):
        _replace(driver, "dialect", _ByOwnClock(driver.dialect))


class _ByOwnClock:
    """A dialect whose `now` is this process's."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dialect, name)

    @property
    def now(self) -> str:
        kind = "TIMESTAMP" if self._dialect.name == "postgresql" else "DATETIME(6)"
        return f"CAST('{utc().isoformat(' ', 'microseconds')}' AS {kind})"

    @property
    def later(self) -> str:
        assert self._dialect.now in self._dialect.later
        return self._dialect.later.replace(self._dialect.now, self.now)


def _replace(place: Any, name: str, by: Any) -> None:
    assert hasattr(place, name), f"{place.__name__} has no {name} any more: the canary is not one"
    setattr(place, name, by)


SWITCHES: dict[str, Callable[[], None]] = {
    "fence": no_fence,
    "worker of the fence": no_worker_in_the_fence,
    "attempt of the fence": no_attempt_in_the_fence,
    "status of the fence": no_status_in_the_fence,
    "FOUND_ROWS": no_found_rows,
    "rollback": no_rollback,
    "database clock": no_database_clock,
}


def pytest_configure(config: pytest.Config) -> None:
    if SWITCH in os.environ:
        SWITCHES[os.environ[SWITCH]]()
