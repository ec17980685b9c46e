"""Words of the command line that stand for something else: conditions and IDs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from asyncexp.errors import InvalidColumnError, ParameterCombinationError, unknown

if TYPE_CHECKING:
    from asyncexp.schema import Column

MOST_IDS = 1_000_000
_RANGE = re.compile(r"(\d+)-(\d+)")
_TEXTS = ("VARCHAR", "TEXT", "LONGTEXT")


def where(texts: Iterable[str], columns: Sequence[Column]) -> dict[str, Any]:
    """`name=value` pairs as a condition; the same name again means any of its values, `null` means NULL.

    Raises:
        ParameterCombinationError: no such column, or no such form; the nearest name is told.
    """
    known = {column.name: column for column in columns}
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ParameterCombinationError(f"--where {text!r}: write it as column=value, such as kernel=rbf")
        if name.strip() not in known:
            raise ParameterCombinationError(unknown("--where: no column", name.strip(), known))
        found.setdefault(name.strip(), []).append(_value(value, known[name.strip()]))
    return {name: values if len(values) > 1 else values[0] for name, values in found.items()}


def _value(text: str, column: Column) -> Any:
    """A word as the column's type has it: of a text column as it stands, else what YAML makes of it."""
    import yaml

    if text.strip().lower() == "null":
        return None
    if getattr(column.type, "name", "") in _TEXTS:
        return _unquoted(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, list | dict) and getattr(column.type, "name", "") != "JSON" else value


def _unquoted(text: str) -> str:
    """Quotes make a text of the word `null`, too."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def statuses(texts: Iterable[str] | None) -> list[str]:
    """`done error,paused` as they are called; `all` stands for each of them.

    Raises:
        ParameterCombinationError: there is no such status; the nearest is told.
    """
    from asyncexp.store.study import statuses as known

    try:
        return known([part.strip() for text in texts or () for part in text.split(",") if part.strip()])
    except InvalidColumnError as wrong:
        raise ParameterCombinationError(f"--status: {wrong}") from None


def ids(texts: Iterable[str] | None) -> list[int] | None:
    """`7 12 20-30` as numbers; None if there are none.

    Raises:
        ParameterCombinationError: something is neither a number nor a range.
    """
    found = list(dict.fromkeys(number for text in texts or () for part in text.split(",") for number in _ids(part)))
    return found or None


def _ids(text: str) -> Iterator[int]:
    if match := _RANGE.fullmatch(text.strip()):
        first, last = map(int, match.groups())
        if not first <= last < first + MOST_IDS:
            raise ParameterCombinationError(f"{text!r}: a range goes upwards, over at most {MOST_IDS:,} IDs")
        yield from range(first, last + 1)
    elif text.strip().isdecimal():
        yield int(text)
    elif text.strip():
        raise ParameterCombinationError(f"{text!r} is no ID: write numbers, or ranges such as 20-30")
