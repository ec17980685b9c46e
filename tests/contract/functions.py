"""Experiment functions that several tests use.

A child process imports this module to find them, so it imports little itself: no pytest, no `Experimenter`.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from asyncexp import ExperimentStatus, ResultProcessor
from tests.contract.shared import Gate, Seen

Keys = dict[str, Any]


async def nothing(keys: Keys, results: ResultProcessor, custom: Keys) -> None: ...


async def never(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    raise AssertionError("nothing is to be run")


async def for_ever(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await asyncio.Event().wait()


async def reports_its_process(keys: Keys, results: ResultProcessor, custom: Keys) -> None:
    await results.process_results({"result": keys["number"], "text": str(os.getpid())})


@dataclass(frozen=True)
class Waits:
    """Opens a gate when it begins, and ends when the test opens the other."""

    began: Gate
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> None:
        self.began.open()
        await self.go_on.passed()


@dataclass(frozen=True)
class Joined:
    """Notes (ID, attempt, worker) for others to attach to, and ends when told: as the last status noted, or as done."""

    ids: Seen
    status: Seen
    go_on: Gate

    async def __call__(self, keys: Keys, results: ResultProcessor, custom: Keys) -> ExperimentStatus | None:
        mine = results.experiment_id
        self.ids.append([int(mine), mine.attempt, mine.worker])
        await self.go_on.passed()
        return ExperimentStatus(self.status.values()[-1]) if len(self.status) else None
