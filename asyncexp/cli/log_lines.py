"""How lines of a log table are printed: in columns, as a JSON document, or as one a line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asyncexp.cli import cells, output

if TYPE_CHECKING:
    from rich.text import Text

Line = Mapping[str, Any]


class Columns:
    """Lines one below the other, in columns that grow when they must."""

    def __init__(self, columns: Sequence[str], *, indent: str = "") -> None:
        self._columns = columns
        self._indent = indent
        self._widths: list[int] | None = None
        self._several_attempts = False

    def print(self, lines: Sequence[Line]) -> None:
        if not lines:
            return
        rows = [self._cells(line) for line in lines]
        if self._widths is None:
            headings = ["ID", "attempt", "time (UTC)", *self._columns]
            self._widths = [0] * len(headings)
            self._widen([headings, *([str(each) for each in row] for row in rows)])
            self._say([_text(heading, "bold") for heading in headings])
        self._widen([[str(each) for each in row] for row in rows])
        for row in rows:
            self._say(row)
        output.out().file.flush()

    def end(self) -> None:
        if self._widths is None:
            output.note("no lines")

    def _cells(self, line: Line) -> list[Text]:
        attempt, date = line["_attempt"], line["timestamp"]
        when = "-" if date is None else f"{date:%Y-%m-%d %H:%M:%S}.{date.microsecond // 1000:03}"
        told = (_cell(line[name]) for name in self._columns)
        return [_cell(line["experiment_id"]), _cell(attempt), _text(when), *told]

    def _widen(self, rows: Sequence[Sequence[str]]) -> None:
        from rich.cells import cell_len

        assert self._widths is not None, "the headings come first"
        for place, column in enumerate(zip(*rows, strict=True)):
            self._widths[place] = max(self._widths[place], *map(cell_len, column))

    def _say(self, row: Sequence[Text]) -> None:
        from rich.text import Text

        assert self._widths is not None, "the headings come first"
        line = Text(self._indent)
        for text, width in zip(row, self._widths, strict=True):
            line.append_text(text)
            line.append(" " * (width - text.cell_len + 2))
        line.rstrip()
        output.say(line, cut=True)


def _cell(value: Any) -> Text:
    """On a terminal, fractions with as many digits as one can compare."""
    if isinstance(value, float) and output.out().is_terminal:
        return _text(f"{value:.6g}")
    return cells.cell(value)


def _text(words: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(words, style)


class Stream:
    """A JSON document a line."""

    def __init__(self, _: Sequence[str]) -> None: ...

    def print(self, lines: Sequence[Line]) -> None:
        for line in lines:
            output.write_json(line, line=True)

    def end(self) -> None: ...


class Array(Stream):
    """One JSON document, a line of it each, however many there are."""

    _begun = False

    def print(self, lines: Sequence[Line]) -> None:
        for line in lines:
            sys.stdout.write(",\n" if self._begun else "[\n")
            self._begun = True
            super().print([line])

    def end(self) -> None:
        sys.stdout.write("]\n" if self._begun else "[]\n")


Printer = Columns | Stream
