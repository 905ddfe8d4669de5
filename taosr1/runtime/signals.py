"""How a program is stopped and how it ends: SIGTERM and Ctrl-C, error messages instead of tracebacks, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, NoReturn

from taosr1.runtime.distributed import lost_contact, mute_stdout, part, this_rank


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
    mute_stdout(rank)
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
