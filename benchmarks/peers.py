"""S2: the same experiments with PyExperimenter 1.4.2, in its own virtual environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from asyncexp.db.base import Target
from benchmarks import study, throughput
from benchmarks.places import Place
from benchmarks.rounds import Line, in_turns
from tests.studies import write_configuration

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-legacy"
REQUIREMENT = "py_experimenter==1.4.2"
AT_ONCE = 200


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


def measured(python: Path, rows: int, size: throughput.Size) -> Line:
    """Our 200 at once against its one process, both on SQLite.

    More of its processes are hardly faster: they run rows twice, and end with "database is locked".
    """
    place = Place("sqlite")
    count = size.of("sqlite", AT_ONCE)
    told: dict[str, Any] = {}
    peer, ours = in_turns(
        size.rounds,
        lambda: _peer(place, python, rows, told),
        lambda: throughput.ours(place, AT_ONCE, count),
    )
    what = f"no-op; limit: PyExperimenter {told['version']}, one at a time"
    return Line("S2", what, "experiments/s", peer, ours, place.shown, AT_ONCE, 100.0, 200.0, facts={"peer_rows": rows})


def _peer(place: Place, python: Path, rows: int, told: dict[str, Any]) -> float:
    with place.empty() as (folder, target):
        command = [
            str(python),
            str(Path(__file__).with_name("legacy.py")),
            str(_configuration(folder, target, rows)),
        ]
        done = subprocess.run(
            [*command, str(rows)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    told.update(json.loads(done.stdout.splitlines()[-1]))
    return float(told["timed"]) / float(told["seconds"])


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
