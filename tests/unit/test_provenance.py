"""What is kept of a command line."""

from __future__ import annotations

import pytest

from asyncexp.provenance import discreet


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["run.py", "--password=c4N"], ["run.py", "--password=..."]),
        (["run.py", "--password=c4N and more=c4N"], ["run.py", "--password=..."]),
        (["run.py", "--db-password", "c4N", "x"], ["run.py", "--db-password", "...", "x"]),
        (["run.py", "--DB_PASSWORD", "-c4N"], ["run.py", "--DB_PASSWORD", "..."]),
        (["run.py", "database.password=c4N", "seed=1"], ["run.py", "database.password=...", "seed=1"]),
        (["env", "PGPASSWORD=c4N", "run.py"], ["env", "PGPASSWORD=...", "run.py"]),
        (["env", "ASYNCEXP_DATABASE__PASSWORD=c4N"], ["env", "ASYNCEXP_DATABASE__PASSWORD=..."]),
        (
            ["--token=c4N", "--api-key", "c4N", "--hf_token", "c4N"],
            ["--token=...", "--api-key", "...", "--hf_token", "..."],
        ),
        (["--passphrase", "c4N", "--client_secret=c4N"], ["--passphrase", "...", "--client_secret=..."]),
        (["postgresql://me:c4N@host/db"], ["postgresql://me:...@host/db"]),
        (["--url=mysql+aiomysql://me:c/4@N@host:1/db?x=y"], ["--url=mysql+aiomysql://me:...@host:1/db?x=y"]),
        (["https://host/?password=c4N&x=1"], ["https://host/?password=...&x=1"]),
        (["-c", "connect(password='c4N')"], ["-c", "connect(password=..."]),
        (['{"password": "c4N", "seed": 1}'], ['{"password": ... "seed": 1}']),
    ],
)
def test_secrets_are_left_out(given: list[str], kept: list[str]) -> None:
    assert list(discreet(given)) == kept


@pytest.mark.parametrize(
    "line",
    [
        ["python", "-m", "study", "--max_tokens", "512", "--tokenizer=gpt2", "--pad-token", "<pad>"],
        ["run.py", "--ask-password", "--seed", "1"],
        ["run.py", "--credentials", "config/database_credentials.yml", "--key", "learning_rate"],
        ["run.py", "https://host:8080/data", "git@host:lab/study.git", "a=b=c", ""],
        ["run.py", "--password"],
    ],
)
def test_all_else_is_kept(line: list[str]) -> None:
    assert list(discreet(line)) == line
