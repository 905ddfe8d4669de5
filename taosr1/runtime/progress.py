"""What is shown while something long runs: a bar that is drawn again in time, and what engines say between two passes.

An engine knows how far its call is, but not who waits for it; a script knows that, but not how an engine works:

    report("pairs scored", done, total)                    # in an engine or a loop, after each forward pass
    with Bar(total=steps) as bar, listening(bar.part):     # in a script, around any number of such calls
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

Listener = Callable[[str, "int | Callable[[], int]", int], None]

REDRAW_S, CLOCK_S = 0.3, 1.0  # on a terminal: between two redraws at least, and at most
LINE_S, LATER_LINE_S, LATER_S = 10.0, 30.0, 600.0  # in a log: between two lines; the second once a bar is that old

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)  # of this thread alone


def report(what: str, done: int | Callable[[], int], total: int) -> None:
    """Say after a pass how far a call is, such as 12 of 64 pairs. Free where nobody listens.

    done: a function where the number costs something: it is called when it is shown. A listener may raise `GivenUp`.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """A context in which `report` calls this function, in this thread."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


class Bar(tqdm):
    """A progress bar with the time left, and beside it how far the present part of the work is.

    On a terminal it is redrawn every second. Where stderr goes to a file it is a line of its own every ten seconds,
    after ten minutes every thirty. A thread sees to both, so that it moves while one long pass runs.
    """

    def __init__(self, iterable: Iterable | None = None, **settings: Any) -> None:
        """iterable: what the bar is a loop over, if it is one. settings: those of tqdm."""
        self._watched, self._ended, self._drawn = sys.stderr.isatty(), threading.Event(), 0.0
        self._note, self._part, self._part_began, self._looked = "", None, (0.0, 0), 0.0
        form = {} if self._watched else {"ascii": True, "file": _Lines()}
        super().__init__(iterable, **form, **settings)
        if not self.disable:
            threading.Thread(target=self._keep_alive, name="progress bar", daemon=True).start()

    def update(self, n: float | None = 1) -> None:
        """Count n more items; the part that was under way is over."""
        if not self.disable:
            self.n, self._part = self.n + n, None
            self.last_print_n = self.n  # for tqdm's own loop over an iterable
            self._draw(REDRAW_S)

    def part(self, what: str, done: int | Callable[[], int], total: int) -> None:
        """Show how far the present part of the work is; a `Listener`."""
        now = time.monotonic()
        if self.disable or callable(done) and self._part and self._part[0] == what and now - self._looked < REDRAW_S:
            return
        self._looked, done = now, done() if callable(done) else done
        if not self._part or (what, total) != (self._part[0], self._part[2]) or done < self._part[1]:
            self._part_began = now, done
        self._part = what, done, total
        self._draw(REDRAW_S)

    def say(self, note: str) -> None:
        """Show this text behind the bar from now on."""
        self._note = note

    def begin_at(self, done: float, total: float) -> None:
        """Other numbers than the bar was made with: what was done before it began does not count for its speed."""
        if not self.disable:
            self.initial = self.n = done
            self.total = total

    def display(self, *given: Any, **named: Any) -> Any:
        self._drawn = time.monotonic()
        self.postfix = ", ".join(filter(None, (self._note, self._part_text())))
        return super().display(*given, **named)

    def close(self) -> None:
        self._ended.set()
        super().close()

    def _part_text(self) -> str:
        part = self._part
        if part is None:
            return ""
        (what, done, total), (began, done_then) = part, self._part_began
        seconds = time.monotonic() - began
        left = ""
        if done > done_then and seconds > 1:
            left = f" ({tqdm.format_interval(seconds / (done - done_then) * (total - done))} left)"
        return f"{what} {done}/{total}{left}"

    def _draw(self, terminal_s: float) -> None:
        """Redraw the bar if that is due, on a terminal after so many seconds."""
        late = time.time() - self.start_t > LATER_S
        line_s = LATER_LINE_S if late else LINE_S
        if time.monotonic() - self._drawn >= (terminal_s if self._watched else line_s):
            self.refresh()

    def _keep_alive(self) -> None:
        while not self._ended.wait(CLOCK_S):
            self._draw(CLOCK_S)


class _Lines:
    """A stream that writes each state of a tqdm bar as a line of its own."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            print(text, file=sys.stderr)

    def flush(self) -> None:
        sys.stderr.flush()
