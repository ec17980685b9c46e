"""What a figure depends on: the machine, and the versions of all that took part."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.places import Place

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("asyncexp", "aiosqlite", "asyncpg", "aiomysql", "pymysql", "pandas", "numpy")


def facts(places: Sequence[Place]) -> dict[str, Any]:
    """Of this machine and now; no names of people or hosts."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _processor(),
            "usable_cores": len(os.sched_getaffinity(0)),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "load_before": load(),
            "sync_ms": round(sync_ms(), 3),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            **{place.shown: place.version for place in places},
            "commit": _commit(),
        },
    }


def load() -> list[float]:
    """How many processes wanted to run, on average of 1, 5 and 15 minutes: other work makes figures worthless."""
    return [round(average, 2) for average in os.getloadavg()]


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def sync_ms(times: int = 20) -> float:
    """What the disk of the temporary folder takes to confirm a small write, in ms: servers wait for it."""
    import tempfile
    import time

    with tempfile.TemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(times):
            os.write(file.fileno(), b"x" * 512)
            os.fdatasync(file.fileno())
        return (time.perf_counter() - began) / times * 1e3


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
