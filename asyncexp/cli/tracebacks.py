"""Tracebacks of experiments, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asyncexp.cli import cells

if TYPE_CHECKING:
    from rich.text import Text

MOST_LINES = 15
"""On a terminal."""


def summed(error: str) -> str:
    """A traceback without its frames: the exception and what it says, which may have several lines."""
    from asyncexp.store.read import raised

    exception, _ = raised(error)
    if exception is None:
        return error.strip() or "the function returned ERROR"
    lines = error.splitlines()
    firsts = [number for number, line in enumerate(lines) if line.partition(":")[0] == exception]
    return "\n".join(lines[firsts[-1] :]).strip()


def tail(traceback: str, *, whole: bool) -> Text:
    """A traceback or the end of it, indented."""
    from rich.text import Text

    lines = cells.in_lines(traceback).strip("\n").split("\n")
    if not whole and len(lines) > MOST_LINES:
        lines = [f"… ({len(lines) - MOST_LINES} lines more: --full)", *lines[-MOST_LINES:]]
    return Text("\n".join(f"  │ {line}" for line in lines), "bright_black")
