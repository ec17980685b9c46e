"""How values stand in a line for people: whatever they hold, they move no cursor and begin no line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

NULL = "null"
NOTHING = "-"
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_CONTROLS_IN_LINES = re.compile(_CONTROLS.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
"""All but tabs and ends of lines."""
_SPELT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_PLAIN_WORD = re.compile(r"[^\s'\"=]+")


def one_line(value: Any) -> str:
    """A value as one line of text; UTC if it is a date."""
    if value is None:
        return NULL
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    return _CONTROLS.sub(_spelt, str(value))


def in_lines(text: str) -> str:
    """A text of several lines that may hold anything."""
    return _CONTROLS_IN_LINES.sub(_spelt, text.replace("\r\n", "\n")).expandtabs(4)


def _spelt(match: re.Match[str]) -> str:
    number = ord(match[0])
    return _SPELT.get(match[0]) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def cell(value: Any) -> Text:
    """A value in a table; NULL differs from the text `null` by being dim."""
    from rich.text import Text

    return Text(one_line(value), "dim" if value is None else "")


def named(values: Mapping[str, Any], longest: int | None = None) -> str:
    """`kernel=rbf C=0.1`, as `--where` takes it; values with more than so many letters are cut."""
    return " ".join(f"{name}={_cut(_word(value), longest)}" for name, value in values.items())


def _cut(text: str, longest: int | None) -> str:
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def _word(value: Any) -> str:
    text = one_line(value)
    plain = not isinstance(value, str) or (_PLAIN_WORD.fullmatch(text) and text.lower() != NULL)
    return text if plain else f'"{text}"'


def moment(date: datetime | None) -> str:
    """A date to the second; UTC."""
    return NOTHING if date is None else f"{date:%Y-%m-%d %H:%M:%S}"


def age(date: datetime | None, now: datetime) -> str:
    """How long ago that was."""
    from asyncexp.progress import span_text

    return NOTHING if date is None else span_text(max(0.0, (now - date).total_seconds()))


def share(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{fraction:.0%}"


def commit(git_commit: str | None, dirty: bool | None) -> str:
    """The beginning of a commit's hash; `+` for changes on top of it."""
    return NOTHING if git_commit is None else git_commit[:7] + ("+" if dirty else "")


def slurm(job: str | None, array_job: str | None, array_task: str | None) -> str | None:
    """A job as SLURM's own commands name it."""
    return f"{array_job}_{array_task}" if array_job and array_task else job


def ranges(ids: Iterable[int]) -> list[str]:
    """`1-3`, `7`: as commands take IDs."""
    ordered = sorted(ids)
    ends = [ordered[0], *(each for pair in pairwise(ordered) if pair[1] > pair[0] + 1 for each in pair), ordered[-1]]
    return [str(a) if a == b else f"{a}-{b}" for a, b in zip(ends[::2], ends[1::2], strict=True)]


def some(words: Sequence[str], most: int) -> str:
    """The first few of them."""
    more = len(words) - most
    return " ".join(words[:most]) + (f" … ({more:,} more)" if more > 0 else "")


def near(frame: str) -> str:
    """`/long/way/train.py:3 in run` with its file as seen from here, if it is below."""
    here = f"{Path.cwd()}/"
    return one_line(frame.removeprefix(here))
