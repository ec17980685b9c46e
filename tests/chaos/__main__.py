"""Chaos from the command line; see `python -m tests.chaos --help`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from asyncexp.db.base import Target
from tests.chaos.audit import Report, audited
from tests.chaos.storm import Outcome, Storm
from tests.servers import Server, mariadb_server, postgres_server

DATABASES = ("sqlite", "postgresql", "mysql")
SHOWN = 30
"""Violations, at most."""


@contextmanager
def served(database: str, folder: Path) -> Iterator[tuple[Target, Server | None]]:
    """A new database, and the private server that it is on."""
    if database == "sqlite":
        yield Target("sqlite", str(folder / "experiments.db")), None
        return
    with (postgres_server if database == "postgresql" else mariadb_server)(durable=True) as server:
        yield server.fresh(), server


async def stormed(
    target: Target, server: Server | None, keeper: ThreadPoolExecutor, folder: Path, seed: str, seconds: float
) -> tuple[Outcome, Report]:
    outcome = await Storm(target, server, keeper, folder, seed, secrets.token_hex(8)).run(seconds)
    return outcome, await audited(outcome)


def passed(database: str, seed: int, seconds: float) -> bool:
    """One storm on one database; says what came of it, and keeps its folder if that was not as it should be."""
    folder = Path(tempfile.mkdtemp(prefix="asyncexp-chaos-"))
    print(f"{database}: a storm of {seconds:g} s, seed {seed}", flush=True)
    with ThreadPoolExecutor(1) as keeper, served(database, folder) as (target, server):
        outcome, report = asyncio.run(stormed(target, server, keeper, folder, f"{seed}/{database}", seconds))
    print(told(outcome, report), flush=True)
    if report.violations:
        print(f"  files and logs of the workers are in {folder}", flush=True)
        return False
    shutil.rmtree(folder)
    return True


def told(outcome: Outcome, report: Report) -> str:
    faults = outcome.faults
    kills = faults["kill_worker"] + faults["kill_child"]
    away = "times locked" if outcome.target.provider == "sqlite" else "restarts"
    others = ", ".join(f"{faults[name]} {word}" for name, word in OTHERS.items() if faults[name])
    ends = ", ".join(f"{count} {outcome}" for outcome, count in sorted(report.outcomes.items()))
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(report.statuses.items()))
    lines = [
        f"  {outcome.seconds:.0f} s: {kills} kills ({faults['kill_child']} of children), {faults['away']} {away}",
        f"  {others}",
        f"  {len(outcome.numbers)} experiments: {statuses}; {report.resets} were reset",
        f"  {report.attempts} attempts, {report.begun} begun; of those other than done: {ends or 'none'}",
        f"  {report.lost} lost, {report.doubled} doubled, {report.statuses['running']} left running",
    ]
    lines += [f"  VIOLATION {text}" for text in report.violations[:SHOWN]]
    verdict = f"{len(report.violations)} VIOLATIONS" if report.violations else "nothing lost, nothing done twice"
    return "\n".join([*lines, f"  verdict: {verdict}"])


OTHERS = {
    "freeze": "frozen",
    "terminate": "terminated",
    "end_sessions": "times all sessions ended",
    "cut": "links cut",
    "cut_commit": "cut at a commit",
    "swallow": "swallowed answers",
    "stall": "stalled",
    "reset": "resets",
    "release": "releases",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real workers in a storm of faults.")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the storm lasts on each database")
    parser.add_argument("--seed", type=int, default=None, help="decides which fault comes when; random if not given")
    parser.add_argument("--database", choices=(*DATABASES, "all"), default="all")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a shell has the first ignored behind `&`
        signal.signal(number, signal.default_int_handler)
    logging.getLogger("asyncexp-tests").setLevel(logging.CRITICAL)  # of the one that fills and resets
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    databases = DATABASES if given.database == "all" else (given.database,)
    results = [passed(database, seed, given.seconds) for database in databases]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
