"""How a program is stopped and how it ends: SIGTERM and Ctrl-C, error messages instead of tracebacks, exit codes."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from taosr1.runtime.cli import flag_of
from taosr1.runtime.distributed import GivenUp, lost_contact, may_give_up, mute_stdout, shutdown, this_rank

CONTINUES = "the same command continues from"


class Stopped(Exception):
    """A run was asked to stop, and its last finished step is saved. `code` is the program's exit code."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.code = 128 + signum


class StopRequests:
    """A context in which SIGTERM and Ctrl-C only ask for a stop: `signum` is the signal that came, 0 for none.

    A second Ctrl-C stops at once. Signals reach the main thread only; in any other one nothing is ever asked.
    says: what is printed when one comes: what happens now, and how long it takes.
    """

    def __init__(self, says: Callable[[], str]) -> None:
        self.signum, self.says = 0, says
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Give up what is being computed, if a stop was asked for and this rank may. Raises: GivenUp."""
        if self.signum and may_give_up():
            raise GivenUp

    def _ask(self, number: int, frame: object) -> None:
        if number == self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = number
        if this_rank().is_rank_zero:
            print(self.says(), file=sys.stderr, flush=True)


# Settings whose smaller value takes less memory, and switches that do: those that the script has are named.
_SMALLER = ("micro_batch_tok", "batch_tok", "max_new_tokens", "samples")
_SWITCHES = ("activation_checkpointing",)


def run_main(main: Callable[[], object], config: type | None = None) -> None:
    """Run a script's `main` from the command line; errors that are explained end with a message, not a traceback.

    Exit codes: 0 done, 1 an error that is explained, 2 a wrong flag, 130 Ctrl-C, 143 SIGTERM; after the last two the
    same command continues. With several ranks, rank 0 prints for all; an error of one rank begins with its number.
    config: the dataclass of the script's flags, for advice.
    """
    who = ""
    try:
        rank = this_rank()
        who = "" if rank.world == 1 else f"rank {rank.rank} of {rank.world}: "
        signal.signal(signal.SIGTERM, _terminate)
        mute_stdout(rank)
        main()
        shutdown(0)
    except Stopped as stop:
        if this_rank().is_rank_zero:
            print(stop, file=sys.stderr)
        shutdown(stop.code)
        sys.exit(stop.code)
    except MemoryError as error:
        print(f"error: {who}out of memory{memory_advice(config)} ({error})", file=sys.stderr)
        sys.exit(1)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {who}{error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        if error.name is not None:  # raised by Python itself: an installation that lacks a core package
            raise
        print(f"error: {who}{error}", file=sys.stderr)  # an optional package, with the command that installs it
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{who}stopped by Ctrl-C; {CONTINUES} what is saved", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        first_line = next(iter(str(error).splitlines()), "")
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            print(f"error: {who}{first_line[:300]}{memory_advice(config)}", file=sys.stderr)
            sys.exit(1)
        if not lost_contact(error):
            raise
        problem = f"another rank is gone ({first_line[:200]})"
        print(f"error: {who}{problem}; {CONTINUES} the newest checkpoint", file=sys.stderr)
        os._exit(1)  # not sys.exit: a process group with a dead member may wait for it


def memory_advice(config: type | None) -> str:
    """ "; try a smaller --batch-tok, ...": the flags of a script that need less memory."""
    names = [field.name for field in dataclasses.fields(config)] if config else []
    smaller = ", ".join(flag_of(name) for name in _SMALLER if name in names)
    tried = [f"a smaller {smaller}"] if smaller else []
    tried += [flag_of(name) for name in _SWITCHES if name in names]
    return f"; try {' or '.join(tried)}" if tried else ""


def _terminate(number: int, frame: object) -> NoReturn:
    """SIGTERM outside of training: end as after Ctrl-C, so that unfinished files are removed."""
    print(f"stopped by SIGTERM; {CONTINUES} what is saved", file=sys.stderr, flush=True)
    sys.exit(128 + number)
