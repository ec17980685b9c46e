"""YAML text as plain values with their places, `${…}` resolved as OmegaConf does it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import yaml
from yaml.reader import Reader

from asyncexp.config.document import Document, Loc, Problem
from asyncexp.errors import ConfigError

try:
    from yaml import CSafeLoader as _Base
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as _Base  # type: ignore[assignment]

_FLOAT = re.compile(
    r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)\Z"
)
_SUSPICIOUS = re.compile(r"\$\{|^\?\?\?$")
_PREFIX = "tag:yaml.org,2002:"
_SIGNS = (f"{_PREFIX}value", f"{_PREFIX}merge")
"""What `=` and `<<` are to YAML."""
_CUT_TYPE = re.compile(r"\s*(numeric|decimal|double|float|real)\s*\(\s*(\d+)\s*", re.IGNORECASE)
_REST_OF_TYPE = re.compile(r"(\d+)\s*\)\s*")


class _Loader(_Base):
    """Reads `1e-3` as a number and leaves dates as text, as OmegaConf does."""


_Loader.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+.0123456789"))
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != f"{_PREFIX}timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def parse(text: str, file: str) -> Document:
    """
    Raises:
        InvalidConfigError: not YAML, a key twice, an interpolation that leads nowhere.
    """
    return resolve(read_tree(text, file))


def read_tree(text: str, file: str, *, secret: bool = False) -> Document:
    """The values as written, interpolations and all.

    Raises:
        InvalidConfigError: not YAML, a key twice.
    """
    _check_characters(text, file)
    problem = None
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        tree = _Tree(file, loader, root, secret)
        value = tree.build(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        problem = _syntax_problem(error, text, file, secret)
    finally:
        loader.dispose()
    if problem:  # outside of `except`: the parser's own words may quote a secret
        raise problem.error()
    return Document(file, value, tree.locate, secret, written=tree.written)


def scalar(text: str) -> Any:
    """A single value as YAML reads it: a number, true, null, `[a, b]`, `{a: b}`, or the text itself.

    Raises:
        ValueError: not YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(f"is not YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()


def _check_characters(text: str, file: str) -> None:
    bad = Reader.NON_PRINTABLE.search(text)
    if bad:
        before = text[: bad.start()]
        line, column = before.count("\n") + 1, bad.start() - before.rfind("\n")
        raise Problem(f"{file}:{line}:{column}", f"holds the control character {bad[0]!r}; remove it").error()


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str, secret: bool) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line, mark.column) if mark else (0, 0)
    lines = text.splitlines()
    shown = lines[line] if line < len(lines) else ""
    return Problem(f"{file}:{line + 1}:{column + 1}", _syntax_words(error, shown, column, secret))


def _syntax_words(error: yaml.MarkedYAMLError, shown: str, column: int, secret: bool) -> str:
    if "\t" in shown[: column + 1] and not shown[: column + 1].strip():
        return "a tab stands where YAML wants spaces; indent with spaces"
    if secret:
        return "is not valid YAML from here on; text with any of * & ! @ % ` : # { } [ ] belongs in single quotes"
    words = ", ".join(words for words in (error.context, error.problem) if words)
    return f"is not valid YAML: {words}"


class _Tree:
    """The nodes of a file: builds the values, and finds the place of each."""

    def __init__(self, file: str, loader: _Loader, root: yaml.Node | None, secret: bool) -> None:
        self._file = file
        self._loader = loader
        self._root = root
        self._secret = secret
        self._built: dict[int, Any] = {}
        self._under_way: set[int] = set()
        self._pairs: dict[int, dict[Any, tuple[yaml.Node, yaml.Node]]] = {}

    def build(self, node: yaml.Node) -> Any:
        """The value of a node; one that an alias names again is built once."""
        if id(node) in self._under_way:
            raise self._error(node, "an alias (*) stands inside of what it names")
        if id(node) not in self._built:
            self._under_way.add(id(node))
            self._built[id(node)] = self._new(node)
            self._under_way.discard(id(node))
        return self._built[id(node)]

    def _new(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_PREFIX}map":
            return {key: self.build(value) for key, (_, value) in self._mapping(node).items()}
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_PREFIX}seq":
            return [self.build(item) for item in node.value]
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, f"the tag{self._called(node.tag)} is not supported")
        return self._scalar(node)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node)
        except ValueError:
            text = f"is not a valid {node.tag.removeprefix(_PREFIX)}"
        except yaml.constructor.ConstructorError:
            if node.tag not in _SIGNS:
                raise
            text = f"means something else to YAML; write it in quotes: '{node.value}'"
        raise self._error(node, text)

    def _mapping(self, node: yaml.MappingNode) -> dict[Any, tuple[yaml.Node, yaml.Node]]:
        self._refuse_cut_types(node)
        self._refuse_twice(node)
        self._loader.flatten_mapping(node)
        pairs = {self._key(key): (key, value) for key, value in node.value}
        self._pairs[id(node)] = pairs
        return pairs

    def _refuse_cut_types(self, node: yaml.MappingNode) -> None:
        """Within {…} a comma ends the value: NUMERIC(6,2) is `NUMERIC(6`, and `2)` a key of its own."""
        for (_, value), (key, _) in pairwise(node.value):
            cut = _CUT_TYPE.fullmatch(_plain(value) or "")
            rest = _REST_OF_TYPE.fullmatch(_plain(key) or "")
            if cut and rest:
                whole = f"{cut[1]}({cut[2]},{rest[1]})"
                raise self._error(value, f'within {{ }} YAML cuts this at the comma; put it in quotes: "{whole}"')

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        """Before `<<` is merged in, whose keys may be given again."""
        seen: dict[Any, yaml.Node] = {}
        for key_node, _ in node.value:
            key = self._key(key_node)
            if key in seen:
                mark = seen[key].start_mark
                first = f"{self._file}:{mark.line + 1}:{mark.column + 1}"
                text = f"the key{self._called(repr(key))} stands here a second time; first at {first}"
                raise self._error(key_node, text)
            seen[key] = key_node

    def _called(self, words: str) -> str:
        """A word of the file for a message; in a secret one it may be the half of a password without quotes."""
        return "" if self._secret else f" {words}"

    def _key(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be a single word or text, not a list or mapping")
        return node.value if node.tag == f"{_PREFIX}merge" else self.build(node)

    def _error(self, node: yaml.Node, text: str) -> ConfigError:
        mark = node.start_mark
        return Problem(f"{self._file}:{mark.line + 1}:{mark.column + 1}", text).error()

    def locate(self, loc: Loc, of_key: bool) -> tuple[int, int]:
        """Where a value stands, or its key. Steps that the file does not have are passed over."""
        node = shown = self._root
        for step in loc:
            found = self._step(node, step)
            if found:
                key, node = found
                shown = key if of_key or not isinstance(node, yaml.ScalarNode) else node
        return (shown.start_mark.line + 1, shown.start_mark.column + 1) if shown else (1, 1)

    def written(self, loc: Loc) -> str | None:
        """The text of a scalar without quotes; None for anything else: an interpolation, what is not in the file."""
        node = self._root
        for step in loc:
            found = self._step(node, step)
            node = found[1] if found else None
        text = _plain(node)
        return None if text is None or _SUSPICIOUS.search(text) else text

    def _step(self, node: yaml.Node | None, step: Any) -> tuple[yaml.Node, yaml.Node] | None:
        if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            return node.value[step], node.value[step]
        pairs = self._pairs.get(id(node), {})
        if step not in pairs and isinstance(step, str):
            step = next((key for key in pairs if isinstance(key, str) and key.casefold() == step.casefold()), None)
        return pairs.get(step)


def _plain(node: yaml.Node | None) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) and not node.style else None


# -------------------------------------------------------------------------------- interpolation


def resolve(document: Document) -> Document:
    """The document with each `${…}` replaced by what it stands for; `???` is refused.

    Raises:
        InvalidConfigError: an interpolation cannot be read, or leads nowhere.
    """
    suspicious = list(_suspicious(document.value, ()))
    if not suspicious:
        return document
    from omegaconf import OmegaConf  # 80 ms, and few files interpolate

    for loc, text in suspicious:
        _attempt(document, loc, lambda text=text: OmegaConf.create({"text": text}))
    whole = OmegaConf.create(document.value)
    value = document.value
    for loc, _ in suspicious:
        value = _put(value, loc, _attempt(document, loc, lambda loc=loc: _look_up(whole, loc)))
    return replace(document, value=value)


def _suspicious(value: Any, loc: Loc) -> Iterator[tuple[Loc, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _suspicious(item, (*loc, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _suspicious(item, (*loc, index))
    elif isinstance(value, str) and _SUSPICIOUS.search(value):
        yield loc, value


def _look_up(node: Any, loc: Loc) -> Any:
    from omegaconf import OmegaConf

    for step in loc:
        node = node[step]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _attempt(document: Document, loc: Loc, work: Any) -> Any:
    from omegaconf.errors import OmegaConfBaseException

    try:
        return work()
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        text = _words(error, document.secret)
    raise document.problem(loc, text).error()


def _words(error: Exception, secret: bool) -> str:
    from omegaconf.errors import MissingMandatoryValue

    if isinstance(error, MissingMandatoryValue):
        return "is '???', a value still to be filled in"
    missing = re.search(r"Environment variable '(\w+)' not found", str(error))
    if missing:
        return f"the environment variable {missing[1]} is not set"
    why = "" if secret else f" ({str(error).splitlines()[0]})"
    return rf"the interpolation ${{...}} cannot be resolved{why}; a literal one is written \${{...}}"


def _put(tree: Any, loc: Loc, value: Any) -> Any:
    if not loc:
        return value
    if isinstance(tree, list):
        return [_put(item, loc[1:], value) if i == loc[0] else item for i, item in enumerate(tree)]
    return {key: _put(item, loc[1:], value) if key == loc[0] else item for key, item in tree.items()}
