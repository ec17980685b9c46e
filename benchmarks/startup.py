"""S11: what `import asyncexp` costs over a bare interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.rounds import Line, Stopwatch, in_turns

ROOT = Path(__file__).resolve().parents[1]
LEAST_ROUNDS = 7  # single starts scatter, and cost little


def measured(rounds: int) -> list[Line]:
    """Milliseconds of an interpreter from start to end, with the import and without.

    `import asyncexp` alone loads next to nothing: what a user needs of it is the second line.
    """
    return [_measured(rounds, code) for code in ("import asyncexp", "from asyncexp import Experimenter")]


def _measured(rounds: int, code: str) -> Line:
    for warm_up in ("pass", code):  # the disk's cache is warm, and the byte code written
        _started(warm_up)
    limit, ours = in_turns(max(rounds, LEAST_ROUNDS), lambda: _started("pass"), lambda: _started(code))
    return Line("S11", f"{code}; limit: bare python", "ms", limit, ours, reach=120.0, beyond=60.0, judged="excess")


def _started(code: str) -> float:
    watch = Stopwatch()
    with watch.running():
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    return watch.seconds * 1e3
