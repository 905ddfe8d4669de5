"""Command lines from frozen dataclasses: every field is a flag, its metadata the help text, its default the default."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from tqdm import tqdm

T = TypeVar("T")


def option(default: Any, help: str, choices: Sequence[str] | None = None, *, positional: bool = False) -> Any:
    """A config field with its one-line help and, where there are only a few, its allowed values.

    `positional` makes it an argument without a flag; it can still be left out, so its script checks whether it is there.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def parse_config(config: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """Defaults, then --config FILE.json, then flags. An unknown flag, key or value ends the program with a message.

    Raises: SystemExit(2) with the reason on stderr, like every command line.
    """
    summary = (description or "").strip()
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="JSON file with any of these settings; flags win over it")
    types = get_type_hints(config)
    own = vars(config).get("__annotations__", {})  # a script's own settings come first in its help, then those it shares with others
    fields = {field.name: field for field in sorted(dataclasses.fields(config), key=lambda field: field.name not in own)}
    for name, field in fields.items():
        kind, choices = types[name], field.metadata.get("choices")
        shown = field.default if field.default not in ("", None) else "none"
        help_text = f"{field.metadata.get('help', '')} (default: {shown})".replace("%", "%%")
        common = {"default": argparse.SUPPRESS, "help": help_text}
        typed = {"type": _base_type(kind), "choices": choices, "metavar": None if choices else name.upper()}
        if field.metadata.get("positional"):
            parser.add_argument(name, nargs="?", **typed, **common)
        elif kind is bool:
            parser.add_argument(_flag(name), dest=name, action=argparse.BooleanOptionalAction, **common)
        else:
            parser.add_argument(_flag(name), dest=name, **typed, **common)
    positional = any(field.metadata.get("positional") for field in fields.values())
    given = sys.argv[1:] if argv is None else list(argv)
    # Intermixed: `"boots" --price 5 "title"` is a query and a title. It does not know `--`, plain parse_args does.
    parse = parser.parse_intermixed_args if positional and "--" not in given else parser.parse_args
    flags = vars(parse(given))
    path = flags.pop("config", None)
    try:
        stored = _read_config_file(path, fields, types) if path else {}
        return config(**{**stored, **flags})
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def _read_config_file(path: str, fields: dict, types: dict) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path}: no such file")
    try:
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--config {path}: not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise ValueError(f"--config {path}: expected one JSON object of settings")
    problems = []
    for name, value in stored.items():
        if name not in fields:
            problems.append(f"unknown setting {name!r}")
            continue
        kind = _base_type(types[name])
        choices = fields[name].metadata.get("choices")
        allowed = (int, float) if kind is float else kind
        optional = value is None and type(None) in get_args(types[name])
        if not optional and (not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool))):
            problems.append(f"{name} is {value!r}, expected {kind.__name__}")
        elif choices and value not in choices:
            problems.append(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    if problems:
        raise ValueError(f"--config {path}: " + "; ".join(problems))
    return stored


def check(problems: Sequence[tuple[bool, str]]) -> None:
    """Every message whose condition is true, in one ValueError. For `__post_init__` of the scripts' configs."""
    found = [message for wrong, message in problems if wrong]
    if found:
        raise ValueError("; ".join(found))


def at_least(config: object, **lowest: float) -> list[tuple[bool, str]]:
    """Problems for `check`: every named setting that is below its lowest allowed value (or not a number)."""
    values = {name: getattr(config, name) for name in lowest}
    return [(not values[name] >= low, f"{_flag(name)} is {values[name]}, expected at least {low}") for name, low in lowest.items()]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _base_type(kind: Any) -> type:
    """int for `int | None`, the type itself otherwise."""
    return next((part for part in get_args(kind) if part is not type(None)), kind)


def progress(**settings: Any) -> tqdm:
    """A progress bar: redrawn on a terminal, a plain line every ten seconds where output goes to a file."""
    if sys.stderr.isatty():
        return tqdm(mininterval=0.3, **settings)
    return tqdm(mininterval=10, maxinterval=10, ascii=True, file=_Lines(), **settings)


class _Lines:
    """A stream that ends what tqdm writes with a line break instead of returning to the start of the line."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
