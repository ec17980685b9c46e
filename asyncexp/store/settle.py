"""Learning what became of a flush or a claim whose answer never came; nothing is guessed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

from asyncexp.db.base import Transaction
from asyncexp.store.claim import EXPERIMENT, ID, Worker
from asyncexp.store.flush import End, Ended, Flushed, Key, Outcome, Unit, earlier, end_attempts, fence, retry_delay
from asyncexp.store.study import Study


async def settle(study: Study, worker: Worker, units: Sequence[Unit], number: int) -> Flushed | None:
    """What flush `number` did, if it was committed; None if it was not and may be sent again.

    To be asked only after the server's own limit on that flush has passed. Rows that it claimed are
    not told: `release_unknown` gives them back.
    """

    async def work(tx: Transaction) -> Flushed | None:
        text = f'SELECT "last_flush" FROM {study.workers} WHERE "id" = :worker'
        found = await study.fetch(tx, text, worker=worker.id)
        if not found or found[0][0] < number:
            return None
        if worker.joins is not None:  # its number was written with its rows or not at all
            return Flushed()
        running = await fence(study, tx, worker.id, [unit.key for unit in units if unit.end is None])
        ended = await _ended(study, tx, worker, [unit for unit in units if unit.end is not None])
        refused = {unit.key for unit in units} - running - set(ended)
        return Flushed(refused=refused, ended=ended)

    return await study.db.run(work)


async def _ended(study: Study, tx: Transaction, worker: Worker, units: Sequence[Unit]) -> dict[Key, Ended]:
    if not units:
        return {}
    ids = study.integers(unit.key[0] for unit in units)
    done = await study.fetch(
        tx,
        f'SELECT "ID", "_attempt" FROM {study.main} WHERE {study.member(ID, ":ids")} '
        'AND "_worker" = :worker AND "status" = \'done\'',
        ids=ids,
        worker=worker.id,
    )
    other = await study.fetch(
        tx,
        f'SELECT "experiment_id", "attempt", "outcome" FROM {study.attempts} '
        f'WHERE {study.member(EXPERIMENT, ":ids")} AND "worker" = :worker AND "outcome" <> \'lost\'',
        ids=ids,
        worker=worker.id,
    )
    known: dict[Key, Outcome] = {(row[0], row[1]): "done" for row in done}
    known |= {(row[0], row[1]): cast(Outcome, row[2]) for row in other}
    tried = [unit.key[0] for unit in units if known.get(unit.key) == "retried"]
    tries = await earlier(study, tx, tried, "retried")
    return {
        unit.key: _as_told(known[unit.key], unit.end, tries.get(unit.key[0], 1))
        for unit in units
        if unit.key in known and isinstance(unit.end, End) and _can_have_come_of(unit.end, known[unit.key])
    }


def _can_have_come_of(end: End, outcome: Outcome) -> bool:
    """False for an attempt that somebody else ended first, in this worker's name."""
    return outcome == end.outcome or (end.outcome, outcome) == ("error", "retried")


def _as_told(outcome: Outcome, end: End, tries: int) -> Ended:
    """What the lost answer said; `tries` counts this one, too."""
    return Ended(outcome, retry_delay(end, tries - 1) if outcome == "retried" else end.delay_seconds or 0.0)


async def release_unknown(study: Study, worker: Worker, known: Collection[Key]) -> list[int]:
    """Gives back the rows that run in this worker's name but that it knows nothing of; their IDs.

    They come from a claim whose answer was lost. Only the caller knows what it runs, so nothing else
    may be claiming in its name meanwhile.
    """

    async def work(tx: Transaction) -> list[int]:
        text = f'SELECT "ID", "_attempt" FROM {study.main} WHERE "status" = \'running\' AND "_worker" = :worker'
        rows = await study.fetch(tx, text, worker=worker.id)
        strange = sorted(key for row in rows if (key := (int(row[0]), int(row[1]))) not in known)
        held = await fence(study, tx, worker.id, strange)
        await end_attempts(study, tx, worker.id, [Unit(key, end=End("released")) for key in sorted(held)])
        return [key[0] for key in strange]

    return await study.db.run(work)
