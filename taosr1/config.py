"""Command lines from frozen dataclasses: every field is a flag, its metadata the help text, its default the default."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from tqdm import tqdm

from taosr1.ranks import hush, lost_contact, part, this_rank

T = TypeVar("T")
# Of mallopt, from the GNU C library's <malloc.h>; see `keep_freed_memory`.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 2**25  # bytes, the most that M_MMAP_THRESHOLD may be: larger tensors still come from the system and go back to it
MOST_KEPT = 2**31 - 1  # bytes


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


# --- How a program ends -----------------------------------------------------------------------------------------------
class Stopped(Exception):
    """A run was asked to stop, finished its step and saved it. `code` is what the program exits with."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signum


class StopRequests:
    """A context in which SIGTERM and Ctrl-C ask for a stop instead of stopping: `signum` says which came, 0 none.

    A second Ctrl-C is not to be argued with. Signals reach the main thread only; elsewhere nothing is asked.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if number == self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = number
        if this_rank().first:
            print("stopping after this step; its checkpoint is written first", file=sys.stderr, flush=True)


def keep_freed_memory() -> bool:
    """Ask the C library not to give freed memory back to the system; returns whether it will. Peak memory stays about the same.

    Every operation on a CPU makes a tensor and frees another. By default those of a few MiB go back to the system, which must find, clear and
    map each page of the next one anew: a third of the time of scoring with a small model, on a virtual machine. `examples/guide/speed.md` has figures.
    A user's own MALLOC_ variables are left alone; so are other C libraries, which have other rules.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # macOS, Windows
        return False
    return all([mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT), mallopt(M_TRIM_THRESHOLD, MOST_KEPT)])


def run_main(main) -> None:
    """Run a script's `main` from the command line: wrong input ends with its message, not with a traceback.

    Exit codes: 0 done, 1 an error that is explained, 2 a wrong flag, 130 Ctrl-C, 143 SIGTERM. After the last two the same
    command continues. Of several ranks the first speaks for all; another's own trouble begins with its rank.
    """
    try:
        rank = this_rank()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    who = "" if rank.world == 1 else f"rank {rank.rank} of {rank.world}: "
    signal.signal(signal.SIGTERM, _terminate)
    keep_freed_memory()
    hush(rank)
    try:
        main()
        part(0)
    except Stopped as stop:
        if rank.first:
            print(stop, file=sys.stderr)
        part(stop.code)
        sys.exit(stop.code)
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {who}{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{who}stopped by Ctrl-C; the same command continues from what is saved", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            print(f"error: {who}{str(error).splitlines()[0][:300]}; try a smaller --micro-batch-tok or batch, or --activation-checkpointing", file=sys.stderr)
            sys.exit(1)
        if not lost_contact(error):
            raise
        print(f"error: {who}another rank is gone ({str(error).splitlines()[0][:200]}); the same command continues from the newest checkpoint", file=sys.stderr)
        os._exit(1)  # not sys.exit: a process group with a dead member may wait for it


def _terminate(number: int, frame: object) -> NoReturn:
    """SIGTERM outside of training: end like Ctrl-C does, so that files written aside are removed."""
    print("stopped by SIGTERM; the same command continues from what is saved", file=sys.stderr, flush=True)
    sys.exit(128 + number)
