"""S11: what `import asyncexp` and `asyncexp --help` cost over a bare interpreter."""

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
    imports = [
        _measured(rounds, code, ["-c", code], 120.0, 60.0)
        for code in ("import asyncexp", "from asyncexp import Experimenter")
    ]
    return [*imports, _measured(rounds, "asyncexp --help", ["-m", "asyncexp", "--help"], 300.0, 150.0)]


def _measured(rounds: int, name: str, words: list[str], reach: float, beyond: float) -> Line:
    bare = ["-c", "pass"]
    for warm_up in (bare, words):  # the disk's cache is warm, and the byte code written
        _started(warm_up)
    limit, ours = in_turns(max(rounds, LEAST_ROUNDS), lambda: _started(bare), lambda: _started(words))
    return Line("S11", f"{name}; limit: bare python", "ms", limit, ours, reach=reach, beyond=beyond, judged="excess")


def _started(words: list[str]) -> float:
    watch = Stopwatch()
    with watch.running():
        subprocess.run([sys.executable, *words], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return watch.seconds * 1e3
