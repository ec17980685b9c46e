"""What YAML makes of plain words and numbers: `yes` is true, 012 is ten, 1:30 is ninety."""

from __future__ import annotations

import re
from typing import Any

from asyncexp.values import ColumnType

_TEXTS = ("VARCHAR", "TEXT", "LONGTEXT")
_NUMBERS = ("INT", "BIGINT", "NUMERIC", "DOUBLE", "FLOAT")
_EXPONENT = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?[eE][-+]?[0-9]+")
_WHOLE = r"\s*([-+]?[0-9]+)\s*"
_SLICE = re.compile(rf"{_WHOLE}:{_WHOLE}(?::{_WHOLE})?")
_CALL = re.compile(rf"range\((?:{_WHOLE},)?{_WHOLE}(?:,{_WHOLE})?\)")


def misread(kind: ColumnType, value: Any, written: str | None) -> str | None:
    """What is wrong if the column would hold something else than what stands there, unquoted, in the file.

    Numbers with an exponent, and true and false, go into texts as Python writes them.
    """
    if written is None or value is None or isinstance(value, str | list | dict):
        return None
    told = f"YAML reads {written} as {value}"
    if kind.name in _TEXTS and not _is_ordinary(value, written):
        return f"{told}; write it in quotes: '{written}'"
    if kind.name in _NUMBERS and ":" in written:
        found = as_range(written)
        return f"{told}; did you mean values: {found}? If not, write {value}" if found else f"{told}; write {value}"
    return None


def _is_ordinary(value: Any, written: str) -> bool:
    return str(value).casefold() == written.casefold() or bool(_EXPONENT.fullmatch(written))


def no_list(values: Any, written: str | None) -> str:
    """What to say of values that are a single word or number."""
    shown = repr(values) if written is None else written
    found = as_range(shown.strip("'"))
    hint = f"did you mean {found}?" if found else f"wanted is a list, [{shown}], or a range, {{start, stop, step}}"
    return f"the values are {shown}; {hint}"


def as_range(text: str) -> str | None:
    """A range in another spelling, such as 1:10 or range(10), in ours."""
    form = _SLICE.fullmatch(text) or _CALL.fullmatch(text)
    if form is None:
        return None
    step = f", step: {form[3]}" if form[3] else ""
    return f"{{start: {form[1] or 0}, stop: {form[2]}{step}}} (`stop` is excluded)"
