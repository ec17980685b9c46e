"""The JSON schema of the YAML, for editors; `python -m asyncexp.config` writes it to standard output."""

from __future__ import annotations

import json
from typing import Any

from asyncexp.config.form import TYPE_SCHEMA, ConfigurationForm

TITLE = "asyncexp experiment configuration"
_INTERPOLATION = {"type": "string", "pattern": r"\$\{"}


def json_schema() -> dict[str, Any]:
    """What the YAML of an experiment may look like. Any value may also be an interpolation, `${…}`."""
    schema = ConfigurationForm.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    keyfields = schema["$defs"]["TableForm"]["properties"]["keyfields"]
    keyfields["additionalProperties"] = {"anyOf": [keyfields["additionalProperties"], TYPE_SCHEMA]}
    loosened: dict[str, Any] = _loosened(schema)
    return {"title": TITLE, **loosened}


def text() -> str:
    """The schema as the file has it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _loosened(node: Any) -> Any:
    """The same, with every key's value allowed to be an interpolation."""
    if isinstance(node, list):
        return [_loosened(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _loosened(item) for key, item in node.items() if key != "title" or not isinstance(item, str)}
    if isinstance(node.get("properties"), dict):
        made["properties"] = {name: _or_interpolation(_loosened(item)) for name, item in node["properties"].items()}
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = _or_interpolation(_loosened(node["additionalProperties"]))
    return made


def _or_interpolation(schema: dict[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    rest = {key: item for key, item in schema.items() if key not in about}
    if not rest:
        return schema
    options = rest["anyOf"] if set(rest) == {"anyOf"} else [rest]
    return {**about, "anyOf": [*options, _INTERPOLATION]}
