"""Files that a table is written to: by the file's ending, whole or not at all."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from asyncexp.cli import files
from asyncexp.cli.codes import NOT_ALL_WELL, Refused
from asyncexp.cli.output import count, plain

if TYPE_CHECKING:
    import pandas as pd

STDOUT = "-"
EXCEL_ROWS = 1_048_576
EXCEL_COLUMNS = 16_384
EXCEL_TEXT = 32_767
"""Characters of a cell."""
EXCEL_DIGITS = 10**15
"""From here on Excel rounds whole numbers: they are written as text."""
EXCEL_FIRST_YEAR = 1901
BLOCK = 10_000


@dataclass
class Content:
    """What is written."""

    frame: pd.DataFrame
    json: frozenset[str] = frozenset()
    """Columns of JSON, parsed."""
    spreads: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What mean and standard deviation are told of -> their columns; in .tex and .md they share one."""
    exact: frozenset[str] = frozenset()
    """Columns whose numbers are names, such as keyfields: in .tex and .md not rounded."""
    decimals: int | None = None
    remarks: list[str] = field(default_factory=list)
    """What a reader should know of the file."""


def check(path: str) -> None:
    """That such a file can be written, before anything is read.

    Raises:
        Refused: an unknown ending, no such folder, a library that is missing.
    """
    if path == STDOUT:
        return
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise Refused(f"{path}: the ending says the format, one of {', '.join(WRITERS)}; - is CSV on standard output")
    files.check_folder(Path(path))
    if ending in _NEEDS:
        files.needed(_NEEDS[ending], f"writing {ending}", "files")


def write(content: Content, path: str, *, as_json: bool = False) -> None:
    """Writes the file, in one step in place of the one that was there; `-` is standard output, CSV or JSON."""
    if path == STDOUT:
        assert isinstance(sys.stdout, TextIOWrapper)
        sys.stdout.reconfigure(encoding="utf-8")  # as files are
        (_json if as_json else _csv)(content, sys.stdout)
        return
    ending = Path(path).suffix.lower()
    with files.replacing(Path(path)) as temporary:
        if ending in _BINARY:
            WRITERS[ending](content, temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            WRITERS[ending](content, stream)


# ------------------------------------------------------------------------------------------ columns


def _texts(column: pd.Series[Any], *, is_json: bool) -> pd.Series[Any]:
    """What is neither number nor date nor text as text; JSON in JSON's own spelling."""
    if column.dtype != object:
        return column
    spell = _spelt if is_json else _as_text
    return column.map(lambda value: None if value is None else spell(value))


def _spelt(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else str(value)


def _flat(content: Content) -> pd.DataFrame:
    frame = content.frame
    return frame.assign(**{str(name): _texts(frame[name], is_json=name in content.json) for name in frame})


def cells(column: pd.Series[Any]) -> list[Any]:
    """Python's own values, None for what is missing."""
    if column.dtype.kind == "M":
        return [None if value is None else value.to_pydatetime() for value in _holed(column)]
    return _holed(column)


def _holed(column: pd.Series[Any]) -> list[Any]:
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values


# ------------------------------------------------------------------------------------- CSV, parquet


def _csv(content: Content, stream: IO[str]) -> None:
    _flat(content).to_csv(stream, index=False, lineterminator="\n")


def _parquet(content: Content, path: Path) -> None:
    frame = _flat(content)
    objects = [name for name in frame if frame[name].dtype == object]
    frame.astype(dict.fromkeys(objects, "string")).to_parquet(path, index=False, engine="pyarrow")


# --------------------------------------------------------------------------------------------- JSON


def _json(content: Content, stream: IO[str]) -> None:
    stream.write("[")
    for number, row in enumerate(_records(content.frame)):
        stream.write(",\n " if number else "\n ")
        stream.write(json.dumps(row, ensure_ascii=False, default=str))
    stream.write("\n]\n")


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    names = [str(name) for name in frame]
    for start in range(0, len(frame), BLOCK):
        block = frame.iloc[start : start + BLOCK]
        columns = [_for_json(cells(block[name])) for name in block]
        for row in zip(*columns, strict=True):
            yield dict(zip(names, row, strict=True))


def _for_json(values: list[Any]) -> list[Any]:
    if any(isinstance(value, float | datetime | bytes) for value in values):
        return [plain(value) for value in values]
    return values


# -------------------------------------------------------------------------------------------- Excel


def _xlsx(content: Content, path: Path) -> None:
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.styles import Font

    frame = _flat(content)
    _fits_excel(frame)
    book = Workbook(write_only=True)
    sheet = book.create_sheet("experiments")
    sheet.freeze_panes = "A2"
    excel = _Excel(lambda value: WriteOnlyCell(sheet, value))
    heading = [excel.text(str(name)) for name in frame]
    for cell in heading:
        cell.font = Font(bold=True)
    sheet.append(heading)
    for start in range(0, len(frame), BLOCK):
        block = frame.iloc[start : start + BLOCK]
        columns = [[excel.cell(value) for value in cells(block[name])] for name in block]
        for row in zip(*columns, strict=True):
            sheet.append(row)
    book.save(path)
    if excel.cut:
        content.remarks.append(f"{count(excel.cut, 'text')} cut at {EXCEL_TEXT:,} characters, which is Excel's limit")


def _fits_excel(frame: pd.DataFrame) -> None:
    if len(frame) >= EXCEL_ROWS:
        raise Refused(
            f"{len(frame):,} rows: Excel takes {EXCEL_ROWS - 1:,} below the heading; "
            "choose fewer by --where, or write .parquet or .csv",
            NOT_ALL_WELL,
        )
    if len(frame.columns) > EXCEL_COLUMNS:
        raise Refused(f"{len(frame.columns):,} columns: Excel takes {EXCEL_COLUMNS:,}; see --columns", NOT_ALL_WELL)


class _Excel:
    """Values as Excel shows them unchanged: nothing is taken for a formula, no number is rounded."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self.cut = 0

    def cell(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and abs(value) >= EXCEL_DIGITS:
            return self.text(str(value))
        if isinstance(value, datetime):
            return self._date(value)
        return value

    def _date(self, value: datetime) -> Any:
        if value.year < EXCEL_FIRST_YEAR:
            return self.text(value.isoformat(" "))
        cell = self._make(value)
        cell.number_format = "yyyy-mm-dd hh:mm:ss"
        return cell

    def text(self, value: str) -> Any:
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

        shown = ILLEGAL_CHARACTERS_RE.sub("\N{REPLACEMENT CHARACTER}", value)
        if len(shown) > EXCEL_TEXT:
            self.cut += 1
            shown = shown[: EXCEL_TEXT - 1] + "…"
        cell = self._make(shown)
        cell.data_type = "s"  # or "=1+1" would be a formula
        return cell


# ----------------------------------------------------------------------------------- LaTeX, Markdown


@dataclass(frozen=True)
class _Style:
    """How numbers and texts are printed."""

    text: Callable[[str], str]
    number: Callable[[str], str]
    missing: str
    between: str
    """Mean and standard deviation."""


@dataclass(frozen=True)
class _Printed:
    """A column on paper."""

    heading: str
    cells: list[str]
    right: bool


_TEX_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",  # by its number: babel makes a command of it, \textquotedbl is not in every encoding
    "\n": " ",
    "\r": " ",
    "\t": " ",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def _tex_text(text: str) -> str:
    escaped = "".join(_TEX_CHARACTERS.get(character, character) for character in text)
    # At the beginning of a row they would be taken for an argument of the \\\\ before.
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _tex_number(text: str) -> str:
    digits, e, power = text.partition("e")
    if e:
        return rf"${digits} \times 10^{{{int(power)}}}$"
    return f"${text}$" if text.startswith("-") else text


def _md_text(text: str) -> str:
    for character in "\\|`*_<>[]":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


_TEX = _Style(_tex_text, _tex_number, "--", r" $\pm$ ")
_MD = _Style(_md_text, str, "", " ± ")


def _tex(content: Content, stream: IO[str]) -> None:
    columns = list(_printed(content, _TEX))
    sides = "".join("r" if column.right else "l" for column in columns)
    stream.write("% needs \\usepackage{booktabs}\n")
    stream.write(f"\\begin{{tabular}}{{{sides}}}\n\\toprule\n")
    stream.write(_tex_row(column.heading for column in columns))
    stream.write("\\midrule\n")
    for row in zip(*(column.cells for column in columns), strict=True):
        stream.write(_tex_row(row))
    stream.write("\\bottomrule\n\\end{tabular}\n")


def _tex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + " \\\\\n"


def _md(content: Content, stream: IO[str]) -> None:
    columns = list(_printed(content, _MD))
    stream.write(_md_row(column.heading for column in columns))
    stream.write(_md_row("---:" if column.right else "---" for column in columns))
    for row in zip(*(column.cells for column in columns), strict=True):
        stream.write(_md_row(row))


def _md_row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |\n"


def _printed(content: Content, style: _Style) -> Iterator[_Printed]:
    frame = _flat(content)
    means = {mean: (column, std) for column, (mean, std) in content.spreads.items()}
    stds = {std for _, std in content.spreads.values()}
    for name in frame:
        if name in means:
            heading, std = means[name]
            both = _with_spread(frame[name], frame[std], style, content.decimals)
            yield _Printed(style.text(heading), both, right=True)
        elif name not in stds:
            values = cells(frame[name])
            form = _exactly if name in content.exact else _form(values, content.decimals)
            right = frame[name].dtype.kind in "iuf"
            yield _Printed(style.text(str(name)), [_print(value, form, style) for value in values], right)


def _with_spread(mean: pd.Series[Any], std: pd.Series[Any], style: _Style, decimals: int | None) -> list[str]:
    means, stds = cells(mean), cells(std)
    form = _form(means, decimals)

    def show(one: float | None, other: float | None) -> str:
        if one is None:
            return style.missing
        return style.number(form(one)) + ("" if other is None else style.between + style.number(form(other)))

    return [show(one, other) for one, other in zip(means, stds, strict=True)]


def _print(value: Any, form: Callable[[float], str], style: _Style) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return style.number(form(value))
    if isinstance(value, datetime):
        return style.text(value.isoformat(" ", "seconds"))
    return style.missing if value is None else style.text(str(value))


def _exactly(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.15g}"


def _form(values: list[Any], decimals: int | None) -> Callable[[float], str]:
    """All numbers of a column with the same decimals: four digits of the largest, if none are asked for."""
    largest = max((abs(value) for value in values if isinstance(value, float) and math.isfinite(value)), default=0.0)
    if decimals is None and largest and not 1e-3 <= largest < 1e7:
        return lambda value: f"{value:.3e}"
    places = decimals if decimals is not None else max(0, 3 - math.floor(math.log10(largest or 1)))
    return lambda value: str(value) if isinstance(value, int) else f"{value:.{places}f}"


WRITERS: dict[str, Callable[[Content, Any], None]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
    ".json": _json,
    ".tex": _tex,
    ".md": _md,
}
_BINARY = (".parquet", ".xlsx")
_NEEDS = {".parquet": "pyarrow", ".xlsx": "openpyxl"}
