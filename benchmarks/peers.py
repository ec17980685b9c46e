"""S2: the same experiments with others: PyExperimenter in its own virtual environment, queues where installed.

The queues (`pip install -e '.[bench]'`) run jobs that do nothing on the same PostgreSQL. They write no result.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from asyncexp.db.base import Target
from benchmarks import study, throughput
from benchmarks.places import Place
from benchmarks.rounds import Line, all_in_turns, in_turns
from tests.studies import write_configuration

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-legacy"
REQUIREMENT = "py_experimenter==1.4.2"
AT_ONCE = 200


def is_there() -> bool:
    """Whether the predecessor's environment has been made already."""
    return (ENVIRONMENT / "bin" / "python").exists()


def interpreter(given: Path | None) -> Path:
    """The Python that has the peer: the one given, else that of `.venv-legacy`, which is made if it is missing."""
    python = given or ENVIRONMENT / "bin" / "python"
    if not python.exists():
        if given is not None:
            raise FileNotFoundError(f"--legacy-python: {given} does not exist")
        print(f"making {ENVIRONMENT.name} with {REQUIREMENT} …", file=sys.stderr)
        venv.create(ENVIRONMENT, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
    return python


@dataclass(frozen=True)
class Size:
    """How much of the queues is measured."""

    rounds: int
    jobs: int
    settings: Mapping[str, Sequence[int]]
    """Queue -> its batch sizes, or how many of its jobs run at once."""


SLOWER = {"procrastinate": 10}
"""A queue that is so many times slower gets so many times fewer jobs."""
WANTED = {"pgqueuer": (0.7, 1.0)}
"""Against its best setting."""
WHAT = {"pgqueuer": "batches of", "procrastinate": "at once"}


def of_postgres(place: Place, ours: throughput.Size, size: Size) -> Iterator[Line]:
    """Our 200 at once against each queue that is installed, in each of its settings."""
    queues = {name: settings for name, settings in size.settings.items() if find_spec(name)}
    told: dict[str, str] = {}
    sides: dict[tuple[str, int], Callable[[], float]] = {
        (name, setting): partial(_queue, place, name, size.jobs // SLOWER.get(name, 1), setting, told)
        for name, settings in queues.items()
        for setting in settings
    }
    if not sides:
        return
    count = ours.of(place.provider, AT_ONCE)
    own = ("asyncexp", AT_ONCE)
    taken = all_in_turns(size.rounds, {own: lambda: throughput.ours(place, AT_ONCE, count), **sides})
    medians = {side: statistics.median(rates) for side, rates in taken.items()}
    for name, setting in sides:
        best = max(queues[name], key=lambda each: medians[name, each])
        reach, beyond = WANTED.get(name, (None, None)) if setting == best else (None, None)
        peer = f"{name} {told[name]}"
        what = f"no-op; limit: {peer}, {WHAT[name]} {setting}{', its best' if reach else ''}"
        facts = {"rows": count, "peer_at_once": setting}
        figures = (taken[name, setting], taken[own])
        line = partial(Line, "S2", what, "experiments/s", *figures, place.shown, AT_ONCE, reach, beyond)
        yield line(facts=facts, peer=peer)


def _queue(place: Place, name: str, jobs: int, setting: int, told: dict[str, str]) -> float:
    """Jobs a second of a queue, in a process of its own; all of them proved."""
    with place.empty() as (folder, target):
        url = f"postgresql://{target.user}:{target.password}@{target.host}:{target.port}/{target.database}"
        script = Path(__file__).with_name(f"peer_{name}.py")
        answer = _answer([sys.executable, "-P", str(script), str(jobs), str(setting)], folder, DATABASE_URL=url)
    assert answer["done"] == jobs, (name, answer, jobs)
    told[name] = answer["version"]
    return jobs / float(answer["seconds"])


def of_sqlite(python: Path, rows: int, size: throughput.Size) -> Line:
    """Our 200 at once against the one process of PyExperimenter, both on SQLite.

    More of its processes are hardly faster: they run rows twice, and end with "database is locked".
    """
    place = Place("sqlite")
    count = size.of("sqlite", AT_ONCE)
    told: dict[str, str] = {}
    peer, ours = in_turns(
        size.rounds,
        lambda: _predecessor(place, python, rows, told),
        lambda: throughput.ours(place, AT_ONCE, count),
    )
    name = f"PyExperimenter {told['version']}"
    line = partial(Line, "S2", f"no-op; limit: {name}, one at a time", "experiments/s", peer, ours)
    facts = {"rows": count, "peer_rows": rows, "peer_at_once": 1}
    return line(place.shown, AT_ONCE, 100.0, 200.0, facts=facts, peer=name)


def _predecessor(place: Place, python: Path, rows: int, told: dict[str, str]) -> float:
    with place.empty() as (folder, target):
        script = Path(__file__).with_name("legacy.py")
        command = [str(python), str(script), str(_configuration(folder, target, rows)), str(rows)]
        answer = _answer(command, folder, PYTHONPATH=str(Path(__file__).parent))
    told["version"] = answer["version"]
    return float(answer["timed"]) / float(answer["seconds"])


def _answer(command: Sequence[str], folder: Path, **environment: str) -> dict[str, Any]:
    """The JSON that a program prints in its last line."""
    run = partial(subprocess.run, cwd=folder, env=os.environ | environment, check=True)
    done = run(command, stdout=subprocess.PIPE, stderr=None, text=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _configuration(folder: Path, target: Target, rows: int) -> Path:
    return write_configuration(
        folder,
        Target("sqlite", target.database.removesuffix(".db")),  # the peer adds the ending itself
        table=study.TABLE,
        keyfields=study.grid(rows),
        resultfields={"result": "DOUBLE"},
        logtables={},
        n_jobs=1,
    )
