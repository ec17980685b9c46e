"""Parts of a benchmark in processes of their own, which speak with this one in lines of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
END_SECONDS = 60.0


class Child:
    """`python -m benchmarks.<module>`, running."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, **message: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)

    def hear(self) -> dict[str, Any]:
        """The next line.

        Raises:
            ChildProcessError: it ended instead; why stands on standard error.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"benchmarks.{self._module} ended with {self._process.wait(END_SECONDS)}")
        message: dict[str, Any] = json.loads(line)
        return message

    def end(self) -> None:
        """Lets it end by itself, as one that hears no more does.

        Raises:
            ChildProcessError: it failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        if status := self._process.wait(END_SECONDS):
            raise ChildProcessError(f"benchmarks.{self._module} ended with {status}")

    def remove(self) -> None:
        """Sees that it is gone."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """A process that is gone at the end, whatever happens."""
    made = Child(module, *arguments)
    try:
        yield made
        made.end()
    finally:
        made.remove()


def say(**message: Any) -> None:
    """In the child: a line for the parent."""
    print(json.dumps(message), flush=True)


def heard() -> Iterator[dict[str, Any]]:
    """In the child: what the parent says, until it ends."""
    for line in sys.stdin:
        yield json.loads(line)
