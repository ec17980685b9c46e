"""A storm from its beginning to its end: workers, those who feed and watch them, faults, and the calm behind."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from asyncexp import Experimenter
from asyncexp.db.base import Target
from asyncexp.errors import DatabaseError
from tests.chaos import ledger
from tests.chaos.faults import Faults
from tests.chaos.worker import Role
from tests.chaos.workers import Life, Post, Workers, soon_empty
from tests.proxy import Proxy
from tests.servers import Server
from tests.studies import experimenter as new_experimenter
from tests.studies import write_credentials

INTERVAL, LEASE = 0.5, 2.0
RETRIES, MAX_ATTEMPTS = 2, 3
EXECUTION = {
    "heartbeat_interval": INTERVAL,
    "lease": LEASE,
    "grace": 1,
    "retries": RETRIES,
    "max_attempts": MAX_ATTEMPTS,
    "max_errors": -1,
    "poll_interval": 0.3,
}
LIMIT_SECONDS = 3.0
"""After so long an answer counts as lost to workers with a bad link; others wait as long as in earnest."""
NEAR = (
    Role("as_task", {"pool": "task", "n_jobs": 6}),
    Role("plainly", {"pool": "process", "n_jobs": 2}),
    Role("as_task", {"pool": "task", "from_status": "paused"}),
)
FAR = (
    Role("plainly", {"pool": "task", "random_order": True}, "far", LIMIT_SECONDS),
    Role("as_task", {"pool": "process", "n_jobs": 2}, "farther", LIMIT_SECONDS),
)
"""They seem to be on other machines each, at the end of bad links."""
PAUSE_SECONDS = (0.2, 1.0)
"""From one fault to the next."""
OPEN_ROWS, FILLED_AT_ONCE = 60, 40
FEED_SECONDS, SAMPLE_SECONDS = 0.5, 1.0
FINISH_SECONDS = 180.0
"""So long the workers may take to finish when the storm is over."""
TELL_SECONDS = 1.0
"""So long a worker that is late has to tell where it is."""
LEFT_SECONDS = 30.0
"""So long processes and connections may take to end after that."""


@dataclass
class Outcome:
    """What the audit has to know of a storm."""

    target: Target
    folder: Path
    seed: str
    seconds: float = 0.0
    """From the first fault to the last."""
    numbers: set[int] = field(default_factory=set)
    """Of the experiments that were filled in."""
    faults: Counter[str] = field(default_factory=Counter)
    lives: list[Life] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    """Seen while it lasted."""


class Storm:
    """Workers on one database, and what befalls them; `run` is all there is to call.

    Args:
        server: None for SQLite.
        keeper: one thread that lives as long as the server.
        mark: in the environment of every process that descends from this storm.
    """

    def __init__(
        self, target: Target, server: Server | None, keeper: ThreadPoolExecutor, folder: Path, seed: str, mark: str
    ) -> None:
        self.outcome = Outcome(target, folder, seed)
        self._target = target
        self._server = server
        self._keeper = keeper
        self._folder = folder
        self._mark = mark
        self._unsure: set[int] = set()
        """Numbers of a fill whose answer was lost."""
        self._seen: dict[int, tuple[int, str, str | None]] = {}
        self._experimenter = self._study()

    def _study(self) -> Experimenter:
        custom = {"folder": str(self._folder), "seed": self.outcome.seed}
        keyfields = {"number": {"type": "INT"}}
        return new_experimenter(
            self._folder, self._target, keyfields=keyfields, execution=EXECUTION, custom=custom, n_jobs=3
        )

    async def run(self, seconds: float) -> Outcome:
        """Storms for so long, and lets the workers finish."""
        for name in ("logs", "tmp", "checkpoints"):
            (self._folder / name).mkdir()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._experimenter)
            await self._experimenter.create_table()
            await ledger.keep(self._target)
            await self._fill(FILLED_AT_ONCE)
            links: list[Proxy] = []
            workers = Workers(self._folder, await self._posts(stack, links), self._mark, self.outcome.seed)
            self.outcome.lives = workers.lives
            faults = Faults(
                *(self._target, self._server, self._keeper, self._experimenter, workers, links, LEASE),
                self.outcome.seed,
            )
            self.outcome.faults = faults.counts
            async with workers:
                await self._begun(workers)
                await self._storm(faults, seconds)
                await self._finish(workers)
            self.outcome.violations += [f"a process is left: {left}" for left in await workers.left(LEFT_SECONDS)]
        await self._look_around()
        return self.outcome

    async def _posts(self, stack: AsyncExitStack, links: list[Proxy]) -> list[Post]:
        """Every way to run experiments."""
        posts = [self._post(role) for role in NEAR]
        for role in FAR:
            if self._server is None:
                posts.append(self._post(role))
            else:
                links.append(await stack.enter_async_context(Proxy(self._target)))
                folder = self._folder / str(role.machine)
                folder.mkdir()
                posts.append(
                    Post(role, self._folder / "configuration.yml", write_credentials(folder, links[-1].target))
                )
        return posts

    def _post(self, role: Role) -> Post:
        credentials = self._folder / "credentials.yml" if self._server else None
        return Post(role, self._folder / "configuration.yml", credentials)

    # ------------------------------------------------------------------------------------- its course

    async def _begun(self, workers: Workers) -> None:
        while not (self._folder / "journal").exists():
            workers.must_work()
            await asyncio.sleep(0.05)

    async def _storm(self, faults: Faults, seconds: float) -> None:
        pauses = Random(f"{self.outcome.seed}/pauses")
        began = time.monotonic()
        beside = [asyncio.create_task(self._feed()), asyncio.create_task(self._sample())]
        while time.monotonic() < began + seconds:
            faults.strike()
            await asyncio.sleep(pauses.uniform(*PAUSE_SECONDS))
        self.outcome.seconds = time.monotonic() - began
        await faults.end()
        for task in beside:
            task.cancel()
        for ended in await asyncio.gather(*beside, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended
        while self._unsure:
            with suppress(DatabaseError):
                await self._fill(0)

    async def _finish(self, workers: Workers) -> None:
        """Everybody works on; whoever was struck is replaced once more. Then what was paused last is continued."""
        last = Role("as_task", {"pool": "task", "from_status": "paused"})
        if await workers.finish(FINISH_SECONDS):
            await self._look()
            await workers.run_once(self._post(last), FINISH_SECONDS)
        for life in workers.living:
            for which in (signal.SIGUSR1, signal.SIGUSR2):
                life.strike(which)
            await asyncio.sleep(TELL_SECONDS)
            self.outcome.violations.append(f"not finished within {FINISH_SECONDS:g} s: {life.where()}")

    async def _look_around(self) -> None:
        violations = self.outcome.violations
        violations += [f"a file is left: {left}" for left in (self._folder / "tmp").iterdir()]
        violations += [complaint for life in self.outcome.lives if (complaint := life.complaint())]
        if (server := self._server) is not None:
            sessions = await soon_empty(lambda: server.sessions(self._target.database), LEFT_SECONDS)
            violations += [f"session {session} of the database is left" for session in sessions]

    # ------------------------------------------------------------------------- what goes on beside it

    async def _feed(self) -> None:
        """There are always rows to take."""
        while True:
            with suppress(DatabaseError):
                if (await self._experimenter.counts())["created"] < OPEN_ROWS:
                    await self._fill(FILLED_AT_ONCE)
            await asyncio.sleep(FEED_SECONDS)

    async def _fill(self, count: int) -> None:
        """The next numbers; those of a fill whose answer was lost are filled in again."""
        numbers = self.outcome.numbers
        new = range(len(numbers), len(numbers) + count)
        numbers.update(new)
        self._unsure.update(new)
        await self._experimenter.fill_table_with_rows([{"number": number} for number in sorted(self._unsure)])
        self._unsure.clear()

    async def _sample(self) -> None:
        while True:
            with suppress(DatabaseError):
                await self._look()
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _look(self) -> None:
        """Attempts only grow, and what was done stays as it was."""
        for experiment_id, now in await ledger.sample(self._target):
            before = self._seen.get(experiment_id, (0, "", None))
            if now[0] < before[0] or (before[1] == "done" and now != before):
                self.outcome.violations.append(f"experiment {experiment_id} was {before} and is {now}")
            self._seen[experiment_id] = now
