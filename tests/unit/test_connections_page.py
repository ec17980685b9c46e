"""What docs/connections.md says: its configurations load, and its messages are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncexp import config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "connections.md").read_text(encoding="utf-8")
BLOCKS = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("PY_EXPERIMENTER")]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_each_configuration_loads(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.yml"
    path.write_text(BLOCKS[number])
    database = config.load(path, environment={}).database
    assert database.pgbouncer or database.tls_key == str(tmp_path / "alice.key")


def test_the_messages_are_those_of_the_code() -> None:
    source = "".join(path.read_text() for path in (ROOT / "asyncexp" / "db").glob("*.py"))
    section = PAGE.split("| the message says | do |")[1].split("\n\n")[0]
    told = [words for line in section.splitlines()[2:] for words in re.findall(r"`(.+?)`", line.split("|")[1])]
    assert len(told) > 8
    for words in told:
        for part in words.split(" … "):
            assert part in source, words
