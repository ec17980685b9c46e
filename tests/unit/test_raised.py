"""Where a traceback says that an error was raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from asyncexp.fields import fraction
from asyncexp.store.read import raised

HERE = "test_raised.py"


def _told(function: Callable[[], object]) -> tuple[str | None, str | None]:
    with pytest.raises(Exception) as caught:
        function()
    return raised("".join(traceback.format_exception(caught.value.with_traceback(caught.tb.tb_next))))


def _wrong() -> None:
    raise ValueError("one line\nand another: with a colon")


def _in_a_library() -> None:
    fraction("much")  # type: ignore[arg-type]


def _chained() -> None:
    try:
        _wrong()
    except ValueError as wrong:
        raise KeyError("no such key") from wrong


@pytest.mark.parametrize(
    ("function", "exception", "name"),
    [
        (_wrong, "ValueError", "_wrong"),
        (_in_a_library, "asyncexp.errors.InvalidResultFieldError", "_in_a_library"),
        (_chained, "KeyError", "_chained"),
    ],
)
def test_the_users_own_frame_is_named(function: Callable[[], object], exception: str, name: str) -> None:
    kind, frame = _told(function)
    assert kind == exception
    assert frame is not None
    assert HERE in frame
    assert frame.endswith(f" in {name}")


def test_what_is_no_traceback_has_neither() -> None:
    assert raised(None) == raised("") == raised("its child died: signal 9") == (None, None)


def test_where_all_is_a_librarys_the_last_frame_is_named() -> None:
    text = 'Traceback (most recent call last):\n  File "/x/site-packages/a.py", line 3, in f\n    g()\nOSError: no\n'
    assert raised(text) == ("OSError", "/x/site-packages/a.py:3 in f")
