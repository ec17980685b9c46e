"""Checks a document against its form; what does not fit is told with its place and the nearest known word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from asyncexp.config.document import Document, Loc, Problem, did_you_mean, nearest, refuse
from asyncexp.config.models import Model
from asyncexp.errors import ConfigError, InvalidColumnError, InvalidConfigError, InvalidLogtableError

Form = TypeVar("Form", bound=Model)

_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a whole number, and not so large",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping of names to what they are",
    "mapping_type": "must be a mapping of names to what they are",
    "model_type": "must be a section with keys of its own",
    "tuple_type": "must be a list",
    "too_short": "must have at least one entry",
    "string_too_short": "must not be empty",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than_equal": ("le", "must be at most"),
}
_OTHER_WORDS = {
    "mariadb": "mysql",
    "pg": "postgresql",
    "psql": "postgresql",
    "none": "disable",
    "off": "disable",
    "false": "disable",
    "thread": "task",
    "threads": "task",
}
_ELSEWHERE = {
    "user": "user and password belong in the credentials file",
    "password": "user and password belong in the credentials file",
    "stepsize": "did you mean 'step'?",
}


def validate(form: type[Form], document: Document) -> Form:
    """
    Raises:
        ConfigError: one line for each thing that is wrong, with its place.
    """
    if not isinstance(document.value, dict):
        state = "is empty" if document.value is None else "has no sections"
        refuse([document.problem((), f"the file {state}; it must begin with {_known(form)[0]}:")])
    value = _canonical(document, document.value, form, ())
    try:
        return form.model_validate(value)
    except ValidationError as error:
        problems = list(translate(error, form, document))
    refuse(problems)  # outside of `except`: the error holds the values
    raise AssertionError("unreachable: a ValidationError has errors")


# --------------------------------------------------------------------------- the shape of a form


def _fields(form: type[Model]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in form.model_fields.items()}


def _known(form: type[Model]) -> list[str]:
    return list(_fields(form))


def _models(annotation: Any) -> Iterator[type[Model]]:
    """The forms that an annotation speaks of, at whatever depth."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _is_mapping(annotation: Any) -> bool:
    text = str(annotation)
    return "dict[" in text or "Mapping[" in text


def _canonical(document: Document, value: Any, form: type[Model], loc: Loc) -> Any:
    """Section names as the form writes them: their case does not count. That of other keys does."""
    if not isinstance(value, dict):
        return value
    sections = {name.casefold(): name for name, field in _fields(form).items() if _is_section(field)}
    made: dict[Any, Any] = {}
    for key, item in value.items():
        name = sections.get(key.casefold(), key) if isinstance(key, str) else key
        if name in made:
            text = f"the section {key!r} stands here a second time (case does not count)"
            raise document.problem((*loc, key), text, key=True).error()
        made[name] = _canonical_below(document, item, form, (*loc, key), name)
    return made


def _canonical_below(document: Document, item: Any, form: type[Model], loc: Loc, name: Any) -> Any:
    field = _fields(form).get(name)
    below = next(_models(field.annotation), None) if field else None
    if field is None or below is None or _is_mapping(field.annotation):
        return item
    return _canonical(document, item, below, loc)


def _is_section(field: FieldInfo) -> bool:
    return _is_mapping(field.annotation) or any(True for _ in _models(field.annotation))


def _form_at(form: type[Model], loc: Loc) -> type[Model] | None:
    """The form of the section at `loc`; None where any key may stand."""
    here: type[Model] | None = form
    names = iter(loc)
    for step in names:
        field = _fields(here).get(step) if here else None
        if field is None:
            return None
        here = next(_models(field.annotation), None)
        if _is_mapping(field.annotation):
            next(names, None)
    return here


# ------------------------------------------------------------------------------ pydantic's errors


def translate(error: ValidationError, form: type[Model], document: Document) -> Iterator[Problem]:
    """Pydantic's errors as problems; a key that is missing because it is misspelt is told once."""
    details = error.errors(include_url=False, include_input=not document.secret)
    misspelt = {
        (*loc[:-1], nearest(loc[-1], _known(owner)))
        for loc in (detail["loc"] for detail in details if detail["type"] == "extra_forbidden")
        if (owner := _form_at(form, loc[:-1]))
    }
    for detail in details:
        if detail["type"] != "missing" or detail["loc"] not in misspelt:
            yield _problem(detail, form, document)


def _problem(detail: ErrorDetails, form: type[Model], document: Document) -> Problem:
    kind, loc = detail["type"], detail["loc"]
    if loc and loc[-1] == "[key]":
        loc = loc[:-1]
        text = "YAML reads this key as a number or as true or false; write it in quotes"
        return document.problem(loc, text, _error_class(loc), key=True)
    if kind == "extra_forbidden":
        return document.problem(loc, _unknown(loc, form, document.secret), _error_class(loc), key=True)
    if kind == "missing":
        owner = f" in {loc[-2]}" if len(loc) > 1 else ""
        return document.problem(loc[:-1], f"{loc[-1]!r} is missing{owner}", _error_class(loc), key=True)
    text = _what(detail, document)
    if text.startswith("must"):
        return document.problem(loc, f"{_label(loc)}{text}", _error_class(loc))
    return document.problem(_narrowed(loc, text, form), text, _error_class(loc))


def _label(loc: Loc) -> str:
    names = [step for step in loc if isinstance(step, str)]
    return f"{names[-1]} " if names else ""


def _narrowed(loc: Loc, text: str, form: type[Model]) -> Loc:
    """What is wrong with a section as a whole begins with the name of the key to mend."""
    owner, word = _form_at(form, loc), text.partition(" ")[0]
    return (*loc, word) if owner and word in _known(owner) else loc


def _unknown(loc: Loc, form: type[Model], secret: bool) -> str:
    """In a secret document the key is not named: it may be the half of a password without quotes."""
    key = loc[-1]
    owner = _form_at(form, loc[:-1])
    known = _known(owner) if owner else []
    where = f" in {loc[-2]}" if len(loc) > 1 else ""
    hint = _ELSEWHERE.get(str(key)) or did_you_mean(key, known)
    return f"unknown key{'' if secret else f' {key!r}'}{where}; {hint}"


def _what(detail: ErrorDetails, document: Document) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context["error"])
    if kind == "literal_error":
        return _choice(context["expected"], detail, document)
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {context[name]:g}{_found(detail, document)}"
    return f"{_WORDS.get(kind, detail['msg'])}{_found(detail, document)}"


def _choice(expected: str, detail: ErrorDetails, document: Document) -> str:
    known = expected.replace("'", "").replace(" or ", ", ").split(", ")
    if document.secret:
        return f"must be one of {', '.join(known)}"
    given = detail["input"]
    hint = _OTHER_WORDS.get(str(given).casefold()) or nearest(given, known)
    meant = f"; did you mean {hint!r}?" if hint in known else ""
    return f"must be one of {', '.join(known)}, not {given!r}{meant}"


def _found(detail: ErrorDetails, document: Document) -> str:
    """What stands there instead, if it is short and no secret."""
    given = detail.get("input")
    if document.secret or isinstance(given, Mapping | list | tuple) or "input" not in detail:
        return ""
    if isinstance(given, str):
        return f", not {given[:60]!r}"
    return ", not left blank" if given is None else f", not {given}"


def _error_class(loc: Loc) -> type[ConfigError]:
    names = [step for step in loc if isinstance(step, str)]
    if names[2:3] == ["logtables"]:
        return InvalidColumnError if len(names) > 4 else InvalidLogtableError
    if names[3:4] == ["keyfields"]:
        is_column = len(names) < 6 or names[5] == "type"
        return InvalidColumnError if is_column else InvalidConfigError
    return InvalidColumnError if names[3:4] == ["resultfields"] else InvalidConfigError
