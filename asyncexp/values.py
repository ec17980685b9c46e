"""One codec a column type: the user's value, its canonical form, and what the database gives back."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, Self, get_args

TypeName = Literal[
    "VARCHAR",
    "INT",
    "BIGINT",
    "NUMERIC",
    "DOUBLE",
    "FLOAT",
    "BOOLEAN",
    "DATETIME",
    "TEXT",
    "LONGTEXT",
    "JSON",
]
_SAME = {"INTEGER": "INT", "DECIMAL": "NUMERIC", "REAL": "DOUBLE", "BOOL": "BOOLEAN", "TIMESTAMP": "DATETIME"}
_FORM = re.compile(r"\s*([a-z ]+?)\s*(?:\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\))?\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column's type as the configuration writes it: `VARCHAR(50)`, `NUMERIC(6,3)`, `int`."""

    name: TypeName
    size: int | None = None
    """Characters of a VARCHAR, digits of a NUMERIC(p,s); None elsewhere."""
    scale: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a type in any case; `VARCHAR` alone is `VARCHAR(255)`.

        Raises:
            ValueError: no such type; the message names the nearest one.
        """
        known = get_args(TypeName)
        form = _FORM.fullmatch(text)
        name = form[1].upper() if form else text.strip().upper()
        name = _SAME.get(name, name)
        if not form or name not in known:
            near = get_close_matches(name, [*known, *_SAME], n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known types: {', '.join(known)}"
            raise ValueError(f"unknown type {text!r}; {hint}")
        return cls(name, *_sizes(name, form[2], form[3]))

    def __str__(self) -> str:
        sizes = [str(n) for n in (self.size, self.scale) if n is not None]
        return f"{self.name}({','.join(sizes)})" if sizes else self.name


def _sizes(name: str, size: str | None, scale: str | None) -> tuple[int | None, int | None]:
    if name == "VARCHAR":
        return int(size or 255), None
    if name == "NUMERIC" and size:
        return int(size), int(scale or 0)
    return None, None
