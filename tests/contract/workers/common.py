"""What the worker programs share: their study from the command line, and words to and from the test.

Children of theirs import this module too, for the words alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncexp import Experimenter

ARGUMENTS = sys.argv[3:]
"""What the test gave beyond configuration and credentials."""


def study(**arguments: Any) -> Experimenter:
    from asyncexp import Experimenter

    configuration, credentials = sys.argv[1:3]
    arguments.setdefault("use_codecarbon", "CodeCarbon:" in Path(configuration).read_text())
    return Experimenter(configuration, credentials or None, logger_name="asyncexp-tests", log_file=None, **arguments)


def say(what: Any) -> None:
    """Tells the test something, in one line; several threads may speak at once, so the line is one write."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def wait_for_word() -> str:
    """Blocks until the test says something."""
    return sys.stdin.readline().strip()


def note(path: str, what: str) -> None:
    """One line in a file that many processes write."""
    with Path(path).open("a") as file:
        file.write(f"{what}\n")
