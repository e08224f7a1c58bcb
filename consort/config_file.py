"""`consort.toml` to frozen dataclasses and back: every mistake at once, each with its line and nearest key.

Paths in the file are relative to the file's folder, paths in `--set` to the current one. What the values mean
together (files that exist, devices of one name) is checked in `preflight`, not here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from consort.config import Config
from consort.config_lines import key_lines
from consort.config_overrides import apply_override
from consort.config_serve import SCORER_WORDS, TOKEN_SCORER_WORDS
from consort.errors import ConfigError
from consort.problems import Problem, nearest, raise_errors, shown

PATH_FIELDS = frozenset({"public", "data", "unlabelled", "chat_template"}) | frozenset(
    {"adapter", "alike", "mix_weights", "scorer", "state", "tls_certificate", "tls_key", "token_scorer"}
)
MODEL_FIELDS = frozenset(
    {"model", "gliner_model"}
)  # a Hub id unless a directory of that name exists or the value begins like a path
# in the place of a file, the scorers that need none
WORDS: Mapping[str, tuple[str, ...]] = {"scorer": SCORER_WORDS, "token_scorer": TOKEN_SCORER_WORDS}

Table = TypeVar("Table")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where each key of a configuration was written, so that a later check can still name the line."""

    path: str = ""
    lines: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, str] = field(default_factory=dict)

    def locate(self, key: str) -> str:
        """`consort.toml:12`, or the `--set` that gave the key; a key not written is placed at its section."""
        for prefix in _prefixes(key):
            if prefix in self.overrides:
                return f"--set {self.overrides[prefix]}"
            if prefix in self.lines:
                return f"{self.path}:{self.lines[prefix]}"
        return self.path or key

    @property
    def sections(self) -> frozenset[str]:
        """The tables and keys of the top level that were written at all."""
        return frozenset(key.partition(".")[0] for key in (*self.lines, *self.overrides))

    def overridden(self, key: str) -> bool:
        """Whether the key's value came from `--set`."""
        return any(prefix in self.overrides for prefix in _prefixes(key))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration; a ConfigError lists all its mistakes, one a line."""
    config, _, mistakes = read_config(path, overrides)
    raise_errors(mistakes)
    return config


def read_config(path: Path | str, overrides: Sequence[str] = ()) -> tuple[Config, Origin, list[Problem]]:
    """As `load_config`, with the mistakes returned instead: a mistaken key keeps its default."""
    file = Path(path)
    text = _read_text(file)
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"\(at line (\d+), column \d+\)", str(error))
        last = str(text.count("\n") + 1)
        reason = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigError(f"not TOML: {reason}", where=f"{path}:{line[1] if line else last}") from None
    given: dict[str, str] = {}
    mistakes: list[Problem] = []
    for override in overrides:
        written = apply_override(raw, override)
        if isinstance(written, Problem):
            mistakes.append(written)
        else:
            given[written] = override
    origin = Origin(str(path), key_lines(text), given)
    reader = _Reader(origin, file.parent.absolute(), mistakes)
    return reader.table(Config(), raw, prefix=""), origin, mistakes


def dump_config(config: Config) -> str:
    """The resolved configuration as TOML, every key written; reading it back gives the same configuration."""
    return tomli_w.dumps(dataclasses.asdict(config))


def fingerprint(config: Config) -> str:
    """Hash of everything that decides a run's numbers; how many processes compute them does not."""
    decisive = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, workers=1))
    numbers = dataclasses.asdict(decisive)
    del numbers["serve"]  # who answers afterwards does not either
    return hashlib.sha256(tomli_w.dumps(numbers).encode()).hexdigest()[:16]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such file", where=str(file), hint=f"`consort init {file}` writes one") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 at byte {error.start}", where=str(file)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(file)) from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns parsed TOML into dataclasses by their type hints, collecting mistakes."""

    origin: Origin
    folder: Path
    mistakes: list[Problem]

    def table(self, default: Table, raw: Mapping[str, Any], *, prefix: str) -> Table:
        """`default` with the keys of `raw` replaced."""
        hints = get_type_hints(type(default))
        changes = {}
        for name, value in raw.items():
            key = f"{prefix}{name}"
            if name not in hints:
                section = f"[{_section(prefix)}]" if prefix else "the top level"
                self._report(key, f'unknown key "{name}" in {section}', nearest(name, list(hints)))
                continue
            try:
                found = self._value(hints[name], value, key=key, default=getattr(default, name))
                # what an endpoint calls its model is no place here, whatever lies beside the file
                changes[name] = value if name in MODEL_FIELDS and raw.get("base_url") else found
            except _MistakeError as mistake:
                self._report(key, f"{_section(key)} {mistake}")
        return dataclasses.replace(default, **changes)  # type: ignore[type-var]

    def _value(self, kind: Any, value: Any, *, key: str, default: Any) -> Any:
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise _MistakeError(f"must be a table, not {shown(value)}")
            return self.table(default, value, prefix=f"{key}.")
        if get_origin(kind) is tuple:
            item = get_args(kind)[0]
            if not isinstance(value, list):
                raise _MistakeError(f"must be a list (write [[{key}]]), not {shown(value)}")
            blank = item() if isinstance(item, type) else None
            return tuple(self._value(item, v, key=f"{key}.{i}", default=blank) for i, v in enumerate(value))
        scalar = _scalar(kind, value)
        return self._path(scalar, key) if isinstance(scalar, str) and scalar else scalar

    def _path(self, value: str, key: str) -> str:
        name = key.rpartition(".")[2]
        if name not in PATH_FIELDS | MODEL_FIELDS or value in WORDS.get(name, ()):
            return value
        folder = Path.cwd() if self.origin.overridden(key) else self.folder
        # os.path, unlike Path, answers for any text: names too long, users unknown.
        resolved = os.path.join(folder, os.path.expanduser(value.removeprefix("./")))
        is_place = name in PATH_FIELDS or value.startswith((".", "/", "~")) or os.path.isdir(resolved)
        return resolved if is_place else value

    def _report(self, key: str, what: str, hint: str = "") -> None:
        self.mistakes.append(Problem(self.origin.locate(key), what, hint, key))


class _MistakeError(Exception):
    """A value that does not fit its field; the reader adds the place."""


def _scalar(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        options = get_args(kind)
        for option in options:
            if type(option) is type(value) and option == value:
                return option
        listed = ", ".join(shown(option) for option in options)
        near = get_close_matches(str(value), [str(option) for option in options], n=1)
        guess = f'; did you mean "{near[0]}"?' if near and isinstance(options[0], str) else ""
        raise _MistakeError(f"must be one of {listed}, not {shown(value)}{guess}")
    if kind is float and type(value) in (int, float):
        if not -sys.float_info.max <= value <= sys.float_info.max:  # also refuses nan
            raise _MistakeError(f"must be a finite number, not {shown(value)}")
        return float(value)
    if type(value) is kind:  # not isinstance: a bool is no int here
        return value
    wanted = {str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    raise _MistakeError(f"must be {wanted}, not {shown(value)}")


def _section(key: str) -> str:
    """`devices.0.slm.` as a person writes it: `devices.slm`."""
    return ".".join(part for part in key.split(".") if part and not part.isdecimal())


def _prefixes(key: str) -> list[str]:
    """`a.b.c`, `a.b`, `a`."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
