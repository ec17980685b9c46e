"""The JSON schema for editors, and the reference page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from runpy import run_module
from typing import Any

import jsonschema
import pytest
import yaml

from asyncexp import config
from asyncexp.config.environment import KNOWN
from asyncexp.config.form import TYPES, DatabaseForm, KeyfieldForm, RootForm, TableForm
from asyncexp.config.models import EXECUTION_KEYS
from asyncexp.errors import ConfigError
from tests.unit.test_config_errors import BASE
from tests.unit.test_config_load import WHOLE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/configuration.md").read_text()
SCHEMA = ROOT / "config/experiment_configuration.schema.json"


def valid(text: str) -> bool:
    validator = jsonschema.Draft202012Validator(config.json_schema())
    return validator.is_valid(yaml.safe_load(text))


def test_the_file_is_what_the_project_writes() -> None:
    """If not: `python -m asyncexp.config > config/experiment_configuration.schema.json`."""
    assert json.loads(SCHEMA.read_text()) == config.json_schema()
    jsonschema.Draft202012Validator.check_schema(config.json_schema())


def test_the_command_writes_it(capsys: pytest.CaptureFixture[str]) -> None:
    run_module("asyncexp.config", run_name="__main__")
    assert capsys.readouterr().out == SCHEMA.read_text()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_jobs: 4", "n_jobs: -1"),
        ("n_jobs: 4", "n_jobs: ${oc.env:JOBS}"),
        ("[1, 2]", "{start: 0, stop: 5, step: 2}"),
        ("{type: int, values: [1, 2]}", "numeric(4, 2)"),
        ("n_jobs: 4", "Execution: {retry_on: [OSError], worker_env: {A: [0, 1], B: x}, timeout: null}"),
        ("n_jobs: 4", "Custom: {any: {thing: [1, {}]}}"),
    ],
)
def test_what_loads_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    monkeypatch.setenv("JOBS", "2")
    text = BASE.replace(old, new)
    (tmp_path / "study.yml").write_text(text)
    config.load(tmp_path / "study.yml", environment={})
    assert valid(text)
    assert valid(WHOLE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n_jobs: 4", "njobs: 4"),
        ("n_jobs: 4", "n_jobs: four"),
        ("n_jobs: 4", "Execution: {pool: thread}"),
        ("provider: sqlite", "provider: oracle"),
        ("type: int", "type: itn"),
        ("[1, 2]", "{start: 1}"),
        ("[1, 2]", "3"),
        ("acc: double", "acc: 3"),
        ("    database: study\n", ""),
    ],
)
def test_what_is_refused_is_not_valid(tmp_path: Path, old: str, new: str) -> None:
    text = BASE.replace(old, new, 1)
    (tmp_path / "study.yml").write_text(text)
    with pytest.raises(ConfigError):
        config.load(tmp_path / "study.yml", environment={})
    assert not valid(text)


# ---------------------------------------------------------------------------- docs/configuration.md


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def files(language: str, root: str) -> list[Any]:
    return [pytest.param(block, id=block[:40]) for block in blocks(language) if root in block]


@pytest.mark.parametrize("text", files("yaml", "PY_EXPERIMENTER") + files("ini", "[PY_EXPERIMENTER]"))
def test_every_configuration_of_the_page_loads(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    (tmp_path / "study.yml").write_text(text)
    config.load(tmp_path / "study.yml", environment={})


@pytest.mark.parametrize("text", files("yaml", "CREDENTIALS") + files("ini", "[CREDENTIALS]"))
def test_every_credentials_file_of_the_page_is_read(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_PASSWORD", "secret")
    (tmp_path / "study.yml").write_text(BASE.replace("sqlite", "mysql"))
    (tmp_path / "credentials").write_text(text)
    (tmp_path / "credentials").chmod(0o600)
    found = config.load(tmp_path / "study.yml", environment={})
    assert config.target(found, tmp_path / "credentials", {}).user == "alice"


def test_the_page_knows_every_key_and_variable() -> None:
    forms = (RootForm, DatabaseForm, TableForm, KeyfieldForm)
    keys = {field.alias or name for form in forms for name, field in form.model_fields.items()}
    missing = [key for key in sorted(keys | set(EXECUTION_KEYS)) if f"`{key}`" not in PAGE]
    variables = [name for name in KNOWN if "EXECUTION__" not in name and name not in PAGE]
    assert (missing, variables) == ([], [])


def test_the_page_knows_every_spelling_of_every_type() -> None:
    assert [name for name in TYPES if not re.search(rf"`{name}(\((n|p,s)\))?`", PAGE)] == []


def test_every_key_of_the_page_has_its_effect() -> None:
    assert "not there yet" not in PAGE.casefold()


def test_the_defaults_of_the_page_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "study.yml").write_text(BASE)
    defaults = config.load(tmp_path / "study.yml", environment={}).execution
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", PAGE, re.MULTILINE))
    assert {key: yaml.safe_load(rows[key]) for key in EXECUTION_KEYS} == defaults.model_dump()


@pytest.mark.parametrize("message", [block for block in blocks("text") if block.startswith("study.yml:")])
def test_the_messages_of_the_page_are_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yml").write_text(blocks("yaml")[0].replace("n_jobs: 4", "njobs: 4"))
    with pytest.raises(ConfigError) as caught:
        config.load("study.yml", environment={})
    assert str(caught.value) == message.strip()
