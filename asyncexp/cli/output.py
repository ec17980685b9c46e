"""What commands write: words and tables for people, one JSON document for scripts."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncexp.cli.codes import Refused

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

PIPE_COLUMNS = 10_000
"""Where nobody looks at lines, none is cut."""
MOST_EXACT = 2**53
"""Greater numbers are texts in JSON: jq and JavaScript would round them, and IDs of workers are such."""
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
    stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)


def in_unicode(stream: Any) -> bool:
    """Whether a stream or console takes every character."""
    return str(stream.encoding).lower().startswith("utf")


def say(*parts: RenderableType, cut: bool = False) -> None:
    """A line of the result. On a terminal it goes on below, or is cut where it does not fit; elsewhere neither."""
    if not out().is_terminal:
        out().print(*parts, soft_wrap=True)
    elif cut:
        out().print(*parts, no_wrap=True, overflow="ellipsis")
    else:
        out().print(*parts)


def note(*parts: RenderableType) -> None:
    """A line beside the result."""
    err().print(*parts)


def mark(good: bool) -> Text:
    """A tick or a cross, in letters where the terminal has no such characters."""
    from rich.text import Text

    words = ("✓", "✗") if in_unicode(out()) else ("ok", "NO")
    return Text(words[0], "green") if good else Text(words[1], "bold red")


def grid(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Iterable[str] = (),
    cut: bool = False,
) -> None:
    """A table without lines: columns named in `right` are numbers; the last one takes what room is left.

    Without any words for headings it has none.

    Args:
        cut: whether the last column is cut where it does not fit, rather than continued on further lines.
    """
    say(lines_or_table(headings, rows, right=right, cut=cut))


def lines_or_table(
    headings: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Iterable[str] = (), cut: bool = False
) -> Table | str:
    """What `grid` shows: a table that fits the terminal, or lines as long as they are."""
    if out().is_terminal:
        return table(headings, rows, right=right, cut=cut)
    lines = plain_lines([headings, *rows], {headings.index(name) for name in right})
    return "\n".join(lines if any(headings) else list(lines)[1:])


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str | Text]], *, right: Iterable[str] = (), cut: bool = False
) -> Table:
    """What `grid` shows on a terminal."""
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_header=any(headings))
    numbers = set(right)
    for place, heading in enumerate(headings):
        last = place == len(headings) - 1
        made.add_column(
            heading,
            justify="right" if heading in numbers else "left",
            no_wrap=not last,
            overflow="fold" if last else "ellipsis",
            min_width=max(len(str(row[place])) for row in [headings, *rows]) if heading in numbers else None,
        )
    for *cells, end in rows:
        made.add_row(*cells, Text.assemble(end, no_wrap=True, overflow="ellipsis") if cut else end)
    return made


def pairs(named: Iterable[tuple[str, str | Text]], *, indent: int = 2) -> None:
    """Names and values, one below the other; a long value goes on beside its name."""
    from rich.padding import Padding
    from rich.table import Table

    rows = list(named)
    if not out().is_terminal:
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            beside = "\n" + " " * (indent + width + 2)
            say(f"{'':{indent}}{name:{width}}  {str(value).replace(chr(10), beside)}")
        return
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True, overflow="ellipsis")
    made.add_column(overflow="fold")
    for row in rows:
        made.add_row(*row)
    say(Padding(made, (0, 0, 0, indent)))


def plain_lines(rows: Sequence[Sequence[str | Text]], right: Container[int] = ()) -> Iterator[str]:
    """The rows of a table as lines, however long; columns at the places in `right` are numbers."""
    from rich.cells import cell_len

    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        blanks = [" " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)]
        cells = [b + t if n in right else t + b for n, (t, b) in enumerate(zip(row, blanks, strict=True))]
        yield "  ".join(cells).rstrip()


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


# -------------------------------------------------------------------------------------------- JSON


def write_json(value: Any, *, line: bool = False) -> None:
    """One JSON document on standard output; as one line where it is piped, or where there are more of them."""
    indent = 2 if sys.stdout.isatty() and not line else None
    stream = out().file
    stream.write(json.dumps(plain(value), ensure_ascii=not in_unicode(stream), indent=indent) + "\n")
    stream.flush()


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
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_EXACT:
        return str(value)
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


@contextmanager
def stdout_kept(wanted: bool = True) -> Iterator[None]:
    """While inside, what is written to standard output goes to standard error, by whatever process."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


# ------------------------------------------------------------------------------------------ asking


def asked(question: str, *, yes: bool) -> bool:
    """Whether somebody agrees. Where nobody can be asked, and `--yes` was not given, the answer is no.

    Raises:
        Refused: nobody can be asked.
    """

    if yes:
        return True
    if not sys.stdin.isatty():
        raise Refused(f"{question} Nobody is here to be asked: add --yes")
    while (word := answer(f"{question} [y/N]").lower()) not in ("y", "yes", "n", "no", ""):
        note("Answer y or n.")
    return word in ("y", "yes")


def answer(question: str) -> str:
    """What somebody types on the terminal; nothing at its end (Ctrl-D)."""
    try:
        with interrupted_at_once():
            err().print(f"{question}: ", end="", soft_wrap=True)
            line = sys.stdin.readline()
    except KeyboardInterrupt:
        note()
        raise
    if not line.endswith("\n"):
        note()
    return line.strip()


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """For what keeps the event loop waiting: Ctrl-C raises here, and not at the next `await`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
