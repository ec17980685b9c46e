"""What commands write: words and tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

PIPE_COLUMNS = 10_000
"""Where nobody looks at lines, none is cut."""
STATUS_STYLES = {"created": "", "running": "cyan", "done": "green", "error": "red", "paused": "yellow"}
WORKER_STYLES = {"live": "green", "lost": "red", "stopped": "bright_black"}


@cache
def out() -> Console:
    """Standard output."""
    return _console(sys.stdout)


@cache
def err() -> Console:
    """Standard error: what is not the command's result."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def say(*parts: RenderableType) -> None:
    """A line of the result."""
    out().print(*parts)


def note(*parts: RenderableType) -> None:
    """A line beside the result."""
    err().print(*parts)


def mark(good: bool) -> Text:
    """A tick or a cross, in letters where the terminal has no such characters."""
    from rich.text import Text

    utf = out().encoding.lower().startswith("utf")
    words = ("✓", "✗") if utf else ("ok", "NO")
    return Text(words[0], "green") if good else Text(words[1], "bold red")


def grid(headings: Sequence[str], rows: Iterable[Sequence[RenderableType]], *, right: Iterable[str] = ()) -> None:
    """A table without lines: columns named in `right` are numbers; the last one takes what room is left.

    Without any words for headings it has none.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headings))
    numbers = set(right)
    for heading in headings:
        side = "right" if heading in numbers else "left"
        table.add_column(heading, justify=side, no_wrap=heading != headings[-1], overflow="ellipsis")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    say(table)


_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], " ")


def one_line(text: str) -> str:
    """A text from somebody's data, without what a terminal would take for an order."""
    return text.translate(_CONTROLS)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# -------------------------------------------------------------------------------------------- JSON


def write_json(value: Any) -> None:
    """One JSON document on standard output, on one line where it is piped."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, indent=indent) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """A value as JSON has it: dates in ISO 8601 (UTC), what is no number `null`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds") + "Z"
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value


# ------------------------------------------------------------------------------------------ asking


def asked(question: str, *, yes: bool) -> bool:
    """Whether somebody agrees. Where nobody can be asked, and `--yes` was not given, the answer is no.

    Raises:
        Refused: nobody can be asked.
    """
    import typer

    from asyncexp.cli.command import Refused

    if yes:
        return True
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is here to be asked: add --yes")
    return typer.confirm(question, err=True)
