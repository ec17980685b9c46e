"""What notebooks show: small pieces of HTML that take their colours and letters from the page around them."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

GREY = "rgba(128,128,128,.3)"
"""Seen on white and on black."""


def table(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A title, and below it names with their values."""
    cells = "".join(
        f'<tr><td style="text-align:left;opacity:.7">{escape(name)}</td>'
        f'<td style="text-align:left">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    return f"<div><b>{escape(title)}</b><table>{cells}</table></div>"


def bar(share: float | None, words: str, *, good: bool) -> str:
    """A bar that is full for that share, and words below it.

    Args:
        share: from 0 to 1; None while it is unknown.
    """
    filled = 0.0 if share is None else 100 * min(1.0, max(0.0, share))
    colour = "#2a9d8f" if good else "#d9822b"
    return (
        f'<div style="max-width:40em"><div style="height:.5em;border-radius:.25em;background:{GREY}">'
        f'<div style="height:100%;border-radius:.25em;background:{colour};width:{filled:.1f}%"></div></div>'
        f'<code style="background:none">{escape(words)}</code></div>'
    )
