"""Words of the command line that stand for something else: conditions and IDs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asyncexp.errors import InvalidColumnError, ParameterCombinationError, unknown

if TYPE_CHECKING:
    from asyncexp.schema import Column

MOST_IDS = 1_000_000
MOST_ID = 2**63 - 1
LONGEST_ID = 40
_ID = re.compile(r"([0-9]{1,30})(?:-([0-9]{1,30}))?")


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
    """A word as the column's type reads it, and not by what it looks like: `010` is ten, `yes` no number."""
    from asyncexp.values import encode

    assert not isinstance(column.type, str), "columns that can be named have a type of values"
    if text.strip().lower() == "null":
        return None
    is_json = column.type.name == "JSON"
    value = _json(text) if is_json else _unquoted(text)
    try:
        stored = encode(column.type, value, key=True)
    except ValueError as wrong:
        raise ParameterCombinationError(f"--where: {column.name!r}: {wrong}") from None
    return value if is_json else stored


def _json(text: str) -> Any:
    """JSON, also as YAML spells it in braces; any other word is a text."""
    import yaml

    with suppress(ValueError):
        return json.loads(text)
    with suppress(yaml.YAMLError):
        if text.strip().startswith(("{", "[")):
            return yaml.safe_load(text)
    return _unquoted(text)


def _unquoted(text: str) -> str:
    """Quotes make a text of the word `null`, too."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def statuses(texts: Iterable[str] | None) -> list[str]:
    """`done error,paused` as they are called; `all` stands for each of them.

    Raises:
        ParameterCombinationError: there is no such status, or a word is empty; the nearest is told.
    """
    from asyncexp.store.study import statuses as known

    try:
        return known([part.strip() for text in texts or () for part in text.split(",")])
    except InvalidColumnError as wrong:
        raise ParameterCombinationError(f"--status: {wrong}") from None


def ids(texts: Iterable[str] | None) -> list[int] | None:
    """`7 12 20-30` as numbers; None if none are given.

    Raises:
        ParameterCombinationError: something is neither a number nor a range. An empty word is neither: it would
            come of a script's empty variable, and must not mean all rows.
    """
    found = list(dict.fromkeys(number for text in texts or () for part in text.split(",") for number in _ids(part)))
    return found or None


def _ids(text: str) -> Iterable[int]:
    match = _ID.fullmatch(text.strip())
    if match is None:
        shown = text if len(text) <= LONGEST_ID else f"{text[:LONGEST_ID]}…"
        raise ParameterCombinationError(f"{shown!r} is no ID: write numbers, or ranges such as 20-30")
    first = int(match[1])
    last = int(match[2] or first)
    if not first <= last < first + MOST_IDS:
        raise ParameterCombinationError(f"{text!r}: a range goes upwards, over at most {MOST_IDS:,} IDs")
    if last > MOST_ID:
        raise ParameterCombinationError(f"{text!r}: IDs go up to {MOST_ID}")
    return range(first, last + 1)
