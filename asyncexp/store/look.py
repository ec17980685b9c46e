"""How a study stands: all of it from one scan of the table, and the rows of the workers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from asyncexp.db.base import Row
from asyncexp.experiment import Running
from asyncexp.schema import quote
from asyncexp.store import workers
from asyncexp.store.claim import ID
from asyncexp.store.read import LIMIT_SECONDS
from asyncexp.store.study import STATUSES, Study
from asyncexp.store.workers import WorkerInfo

SHOWN = 10
"""So many of the running experiments are looked at one by one: those that run longest."""


@dataclass(frozen=True, slots=True)
class Overview:
    """How a study stands at one moment."""

    counts: Mapping[str, int]
    """Status -> rows, every status named."""
    workers: tuple[WorkerInfo, ...]
    """The latest first, the stopped ones too."""
    oldest: tuple[Running, ...]
    """What runs longest, the oldest first."""
    at: datetime
    """When, by the database's clock; naive UTC."""
    scan_seconds: float
    """How long the look took."""
    rate: float = field(default=0.0)
    """Experiments that the live workers end in a second, since each of them began."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        """Experiments that live workers have brought to an end, by the totals that come with their signs of life."""
        return sum(worker.ended_done + worker.ended_error for worker in self.workers if worker.state == "live")

    @property
    def eta_seconds(self) -> float | None:
        """Until no row is open at this rate; None while nothing ends."""
        still = self.counts["created"] + self.counts["running"]
        return still / self.rate if self.rate > 0 and still else (0.0 if not still else None)


async def overview(study: Study, shown: int = SHOWN) -> Overview:
    """One scan of the main table, then its workers, and the rows that run longest by their IDs."""
    began = time.monotonic()
    counts, running = await _scan(study)
    found = await workers.listed(study, running=Counter(worker for _, worker, _ in running if worker is not None))
    [(now,)] = await study.fetch(study.db, f"SELECT {study.dialect.now}")
    at = study.date(now)
    oldest = sorted(running, key=lambda row: (row[2] or at, row[0]))[:shown]
    rows = await _rows(study, [experiment_id for experiment_id, _, _ in oldest])
    made = Overview(counts, tuple(found), tuple(rows), at, time.monotonic() - began)
    return replace(made, rate=_rate(found, at))


async def _scan(study: Study) -> tuple[dict[str, int], list[tuple[int, int | None, datetime | None]]]:
    """Status -> rows; and of those that run: ID, worker, start.

    Other columns of other rows are not touched: behind a long traceback they lie on pages of their own.
    """
    mine = "CASE WHEN \"status\" = 'running' THEN {} END"
    text = (
        f'SELECT "status", COUNT(*), {mine.format(ID)}, MIN({mine.format(quote("_worker"))}), '
        f'MIN({mine.format(quote("start_date"))}) FROM {study.main} GROUP BY "status", {mine.format(ID)}'
    )
    counts = dict.fromkeys(STATUSES, 0)
    running = []
    for status, count, experiment_id, worker, started in await study.db.fetch(
        study.rendered(text), limit_seconds=LIMIT_SECONDS
    ):
        counts[status] = counts.get(status, 0) + int(count)
        if experiment_id is not None:
            running.append((int(experiment_id), worker, None if started is None else study.date(started)))
    return counts, running


async def _rows(study: Study, ids: Sequence[int]) -> list[Running]:
    """Rows that still run, in the order of their IDs given."""
    if not ids:
        return []
    names = ["ID", "_attempt", "_worker", "start_date", "_heartbeat", "_progress", "_message", *study.schema.key_names]
    text = (
        f"SELECT {', '.join(map(quote, names))} FROM {study.main} "
        f"WHERE {study.member(ID, ':ids')} AND \"status\" = 'running'"
    )
    found = {int(row[0]): row for row in await study.fetch(study.db, text, ids=study.integers(ids))}
    return [_running(study, found[each]) for each in ids if each in found]


def _running(study: Study, row: Row) -> Running:
    experiment_id, attempt, worker, started, heartbeat, progress, message, *keys = row
    names = study.schema.key_names
    keyfields = {name: decode(raw) for name, decode, raw in zip(names, study.key_decoders, keys, strict=True)}
    dates = [None if raw is None else study.date(raw) for raw in (started, heartbeat)]
    return Running(int(experiment_id), keyfields, int(attempt), worker, dates[0], dates[1], progress, message)


def _rate(found: Sequence[WorkerInfo], now: datetime) -> float:
    """Each live worker's own pace, from its start to its last sign of life, together."""
    pace = 0.0
    for worker in found:
        lived = (worker.heartbeat - worker.started).total_seconds()
        if worker.state == "live" and worker.role == "worker" and lived > 0 and worker.heartbeat <= now:
            pace += (worker.ended_done + worker.ended_error) / lived
    return pace
