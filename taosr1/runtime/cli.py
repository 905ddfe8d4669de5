"""Command lines from frozen dataclasses: every field is a flag, its metadata the help text, its default the default."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def option(default: Any, help: str, choices: Sequence[str] | None = None, *, positional: bool = False) -> Any:
    """A config field with its one-line help and, where there are only a few, its allowed values.

    positional: an argument without a flag; it can still be left out, so its script checks whether it was given.
        Of type tuple[str, ...] it may be given several times.
    """
    metadata = {"help": help, "choices": tuple(choices) if choices else None, "positional": positional}
    return dataclasses.field(default=default, metadata=metadata)


def parse_config(config: type[T], description: str, argv: Sequence[str] | None = None) -> T:
    """A config from its defaults, then the --config file (JSON), then the flags.

    Raises: SystemExit(2) with a message on stderr for an unknown flag or key, or a wrong value.
    """
    summary, formatter = (description or "").strip(), argparse.RawDescriptionHelpFormatter
    parser = Parser(description=summary, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="JSON file with any of these settings; flags win over it")
    types, fields = get_type_hints(config), add_flags(parser, config)
    positional = any(field.metadata.get("positional") for field in fields.values())
    words = sys.argv[1:] if argv is None else list(argv)
    # Intermixed parsing takes `"boots" --price 5 "title"` as query and title, but does not know `--`.
    parse = parser.parse_intermixed_args if positional and "--" not in words else parser.parse_args
    flags = vars(parse(words))
    path = flags.pop("config", None)
    try:
        given = {**(_read_config_file(path, fields, types) if path else {}), **flags}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        check([(_is_emptied(fields[name], value), f"{flag_of(name)} is empty, expected {_meaning(fields[name])}")
               for name, value in given.items()])  # fmt: skip
        return config(**given)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))


def _is_emptied(field: dataclasses.Field, value: object) -> bool:
    """Whether a setting that has something by default is given as nothing; where that means something, its help says
    ''. `auto` may be emptied too: then nothing is given, and it is found out."""
    usual = field.default not in ("", "auto", None) and field.name != "out"  # --out has its own words
    return value == "" and usual and "''" not in field.metadata.get("help", "")


def _meaning(field: dataclasses.Field) -> str:
    return f"{field.metadata.get('help', 'something')} (default: {field.default})"


def add_flags(parser: argparse.ArgumentParser, config: type) -> dict[str, dataclasses.Field]:
    """A flag for every field of a config; returns the fields by name. What is not given is not among the arguments."""
    types, own = get_type_hints(config), vars(config).get("__annotations__", {})
    # In the help a script's own settings come before inherited ones.
    fields = {field.name: field for field in sorted(dataclasses.fields(config), key=lambda f: f.name not in own)}
    for name, field in fields.items():
        kind, choices = types[name], field.metadata.get("choices")
        shown = field.default if field.default not in ("", None) else "none"
        help_text = f"{field.metadata.get('help', '')} (default: {shown})".replace("%", "%%")
        positional = field.metadata.get("positional")
        if kind is bool:
            form = {"action": argparse.BooleanOptionalAction}
        else:
            parse_value, metavar = _PARSERS[_base_type(kind)], None if choices else name.upper()
            form = {"type": parse_value, "choices": choices, "metavar": metavar}
            form |= {"nargs": "*" if get_origin(kind) is tuple else "?"} if positional else {}
        parser.add_argument(name if positional else flag_of(name), default=argparse.SUPPRESS, help=help_text, **form)
    return fields


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
        elif kind in (int, float) and value is not None and not abs(value) < 2**63:
            problems.append(f"{name} is {value!r}, expected a number below 2^63")
        elif choices and not optional and value not in choices:
            problems.append(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    if problems:
        raise ValueError(f"--config {path}: " + "; ".join(problems))
    return stored


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the list of all flags before it."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("argument "):  # "argument --steps: is '1e3', ..." as argparse has it
            message = message.removeprefix("argument ").replace(": is ", " is ", 1)
        known = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        meant = [_nearest(word, known) for word in unknown if word.startswith("-")]
        hint = "; did you mean " + ", ".join(filter(None, meant)) + "?" if any(meant) else ""
        self.exit(2, f"{self.prog}: error: {message}{hint} (--help lists all flags)\n")


def _nearest(word: str, known: Sequence[str]) -> str:
    """The flag that a misspelt one is most like, "" where none is."""
    name = word.partition("=")[0].lstrip("-").lower().replace("_", "-")
    names = [flag[2:] for flag in known]
    beginning = [flag for flag in names if name and flag.startswith(name)]
    found = beginning or difflib.get_close_matches(name, names, 1)
    return f"--{found[0]}" if found else ""


def _whole_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        hint = ""
        try:
            hint = f", such as {int(float(text))}" if float(text).is_integer() else ""
        except (ValueError, OverflowError):
            pass  # no number at all, or infinite
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a whole number{hint}") from None
    if not abs(number) < 2**63:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a number below 2^63")
    return number


def _finite_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a finite number")
    return number


_PARSERS: dict[type, Callable[[str], Any]] = {int: _whole_number, float: _finite_number, str: str, bool: bool}


def check(problems: Sequence[tuple[bool, str]]) -> None:
    """For `__post_init__` of a config. Raises: ValueError with every message whose condition is true."""
    found = [message for wrong, message in problems if wrong]
    if found:
        raise ValueError("; ".join(found))


def at_least(config: object, **lowest: float) -> list[tuple[bool, str]]:
    """Problems for `check`: every named setting below its lowest allowed value, or NaN."""
    values = [(name, getattr(config, name), low) for name, low in lowest.items()]
    return [(not value >= low, f"{flag_of(name)} is {value}, expected at least {low}") for name, value, low in values]


def flag_of(name: str) -> str:
    """ "--batch-size" for "batch_size"."""
    return "--" + name.replace("_", "-")


def command_line(script: str, **settings: object) -> str:
    """A command to type, "python SCRIPT --flag value", quoted for a shell."""
    words = ["python", script]
    for name, value in settings.items():
        words += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return shlex.join(words)


def _base_type(kind: Any) -> type:
    """int for `int | None`, the type itself otherwise."""
    return next((part for part in get_args(kind) if part is not type(None)), kind)
