"""Taking back the rows of workers that are dead. Who is, is for the caller to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncexp.db.base import Transaction
from asyncexp.store.flush import End, Ended, Key, Unit, earlier, end_attempts, fence
from asyncexp.store.study import Study
from asyncexp.store.workers import raise_counter


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process is; equal only for two on the same machine that see the same process ids."""

    machine: str | None
    boot_id: str | None
    pid_namespace: str | None

    @property
    def known(self) -> bool:
        return bool(self.machine and self.boot_id and self.pid_namespace)


@dataclass(frozen=True, slots=True)
class Sign:
    """The last that a worker wrote of itself, as the driver gives it; any change is a sign of life."""

    heartbeat: Any
    last_flush: int


@dataclass(frozen=True, slots=True)
class Suspect:
    """A worker that may be dead: its lease is over, or it is on this machine."""

    id: int
    name: str
    place: Place
    pid: int
    sign: Sign
    late: bool
    """Its lease is over, by the database's clock."""
    last_seen: datetime

    def __str__(self) -> str:
        where = f"{self.name!r} on {self.place.machine}, pid {self.pid}"
        return f"worker {self.id} ({where}, last seen {self.last_seen:%Y-%m-%d %H:%M:%S} UTC)"


@dataclass(frozen=True, slots=True)
class Rescued:
    """What became of a dead worker's rows, by ID."""

    back: tuple[int, ...] = ()
    """To be run again."""
    ended: tuple[int, ...] = ()
    """`error`: too many workers died of them."""


async def suspects(study: Study, me: int, place: Place) -> list[Suspect]:
    """Workers other than `me` that may be dead and whose rows nobody has taken back."""
    over = study.dialect.later.format(seconds='-"lease"')
    late = f'CASE WHEN "heartbeat" < {over} THEN 1 ELSE 0 END'
    text = (
        f'SELECT "id", "name", "machine", "boot_id", "pid_namespace", "pid", "heartbeat", "last_flush", {late} '
        f'FROM {study.workers} WHERE "role" = \'worker\' AND "id" <> :me AND "stopped" IS NULL '
        f'AND "rescued" IS NULL AND ("heartbeat" < {over} OR '
        '("machine" = :machine AND "boot_id" = :boot_id AND "pid_namespace" = :pid_namespace))'
    )
    rows = await study.fetch(
        study.db, text, me=me, machine=place.machine, boot_id=place.boot_id, pid_namespace=place.pid_namespace
    )
    return [
        Suspect(row[0], row[1], Place(*row[2:5]), row[5], Sign(row[6], row[7]), bool(row[8]), study.date(row[6]))
        for row in rows
    ]


async def has_rows(study: Study, worker: int) -> bool:
    """Whether any row runs in this worker's name."""
    text = f'SELECT "ID" FROM {study.main} WHERE "status" = \'running\' AND "_worker" = :worker LIMIT 1'
    return bool(await study.fetch(study.db, text, worker=worker))


async def rescue(study: Study, dead: Suspect, max_attempts: int) -> Rescued | None:
    """Takes back all rows of a worker: for another attempt, or as `error` where workers died too often.

    One transaction, which holds only if the worker has not written meanwhile, and is not about to; else None. It
    waits for no lock: the signs of life of whoever rescues would wait, too.

    Args:
        max_attempts: lost attempts after which a row is tried again.
    """

    async def work(tx: Transaction) -> Rescued:
        # Rows before the worker, as in every flush: he may be alive, and two orders make a deadlock.
        text = f'SELECT "ID", "_attempt" FROM {study.main} WHERE "status" = \'running\' AND "_worker" = :worker'
        found = {(row[0], row[1]) for row in await study.fetch(tx, text, worker=dead.id)}
        held = sorted(await fence(study, tx, dead.id, found, wait=False))
        if len(held) < len(found):
            raise _IsAlive
        units = await _ends(study, tx, dead, held, max_attempts)
        ended = await end_attempts(study, tx, dead.id, units)
        if not await _mark(study, tx, dead):
            raise _IsAlive
        if held:
            await raise_counter(study, tx, [dead.id])
        return Rescued(
            tuple(key[0] for key in held if ended[key].outcome == "lost"),
            tuple(key[0] for key in held if ended[key].outcome == "error"),
        )

    try:
        return await study.db.run(work)
    except _IsAlive:
        return None


async def end_from_outside(study: Study, worker: int, ends: Mapping[Key, End]) -> dict[Key, Ended]:
    """Ends attempts of a worker that cannot do so itself; those that it still holds, and how each ended.

    Rows that it has locked itself, half-way through a transaction, are left out.
    """

    async def work(tx: Transaction) -> dict[Key, Ended]:
        held = sorted(await fence(study, tx, worker, ends, wait=False))
        return await end_attempts(study, tx, worker, [Unit(key, end=ends[key]) for key in held])

    return await study.db.run(work)


class _IsAlive(Exception):
    """Rolls back what was done to the rows of a worker that wrote meanwhile."""


async def _ends(study: Study, tx: Transaction, dead: Suspect, keys: Sequence[Key], max_attempts: int) -> list[Unit]:
    losses = await earlier(study, tx, [key[0] for key in keys], "lost")
    why = f"Lost: {dead} died or could not be reached"
    units = []
    for key in keys:
        count = losses.get(key[0], 0)
        if count < max_attempts:
            end = End("lost", error=why)
        else:
            end = End("error", error=f"{why}\n{_too_often(count + 1, max_attempts)}")
        units.append(Unit(key, end=end))
    return units


def _too_often(count: int, max_attempts: int) -> str:
    return (
        f"ExperimentLostError: {count} workers were lost while they ran this experiment (max_attempts={max_attempts})"
    )


async def _mark(study: Study, tx: Transaction, dead: Suspect) -> bool:
    unchanged = (
        f'SELECT "id" FROM {study.workers} WHERE "id" = :worker AND "heartbeat" = :heartbeat '
        f'AND "last_flush" = :last_flush AND "stopped" IS NULL AND "rescued" IS NULL{study.dialect.skip_locked}'
    )
    sign = dead.sign
    values = {"worker": dead.id, "heartbeat": sign.heartbeat, "last_flush": sign.last_flush}
    if not await study.fetch(tx, unchanged, **values):
        return False
    text = f'UPDATE {study.workers} SET "rescued" = {study.dialect.now} WHERE "id" = :worker'
    return bool(await study.execute(tx, text, worker=dead.id))
