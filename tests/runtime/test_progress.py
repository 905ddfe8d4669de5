"""Bars that move while nothing is counted, and the reports that say how far a call is."""

from __future__ import annotations

import re
import threading
import time

import pytest

from taosr1.runtime import progress
from taosr1.runtime.progress import Bar, listening, report


@pytest.fixture
def quick(monkeypatch):
    """A line every 0.2 s, every 0.6 s once a bar is a second old."""
    for name, seconds in {"CLOCK_S": 0.05, "LINE_S": 0.2, "LATER_LINE_S": 0.6, "LATER_S": 1.0}.items():
        monkeypatch.setattr(progress, name, seconds)


def test_a_log_gets_plain_lines_the_first_and_last_state_among_them(capsys):
    with Bar(total=2, desc="rows") as bar:
        bar.update(2)
    shown = capsys.readouterr().err.splitlines()
    assert "rows:   0%" in shown[0] and "rows: 100%" in shown[-1] and not any("\r" in line for line in shown)


def test_a_bar_may_be_a_loop_over_an_iterable(quick, capsys):
    assert [time.sleep(0.15) or x for x in Bar([1, 2, 3], desc="rows")] == [1, 2, 3]
    assert list(Bar([1, 2], disable=True)) == [1, 2]
    shown = capsys.readouterr().err.splitlines()
    assert "rows: 100%" in shown[-1] and "3/3" in shown[-1] and any("/3" in line for line in shown[1:-1])


def test_a_line_appears_in_time_while_one_pass_runs_and_a_log_is_not_flooded(quick, capsys):
    with Bar(total=4, desc="rows") as bar:
        bar.part("passes", 1, 7)
        time.sleep(0.9)  # one long pass
        alone = capsys.readouterr().err.splitlines()
        until = time.monotonic() + 1.0
        while time.monotonic() < until:  # thousands of short ones
            bar.part("passes", 3, 7)
        busy = capsys.readouterr().err.splitlines()
    assert 3 <= len(alone) <= 6 and all("passes 1/7" in line for line in alone[1:])
    assert 1 <= len(busy) <= 5 and "passes 3/7" in busy[-1]


def test_time_left_is_shown_for_the_bar_and_for_the_part_that_is_under_way(quick, capsys):
    with Bar(total=10, desc="rows") as bar:
        bar.part("passes", 0, 40)
        time.sleep(1.1)
        bar.part("passes", 10, 40)
        assert "passes 10/40 (00:03 left)" in str(bar) + bar._part_text()
        bar.update(5)
        assert bar._part_text() == ""
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"5/10 \[00:01<00:01", last), last


def test_what_was_done_before_does_not_count_for_the_speed(capsys):
    with Bar(total=1000) as bar:
        bar.begin_at(900, 950)
        time.sleep(0.2)
        bar.update(1)
    found = re.search(r"901/950 .* (\d+\.\d+)it/s", capsys.readouterr().err)
    assert found and 0 < float(found[1]) <= 5  # one in 0.2 s, not 901


def test_reports_reach_the_one_who_listens_in_this_thread_and_nobody_else():
    heard, inner = [], []
    report("rows", 1, 2)
    with listening(lambda *said: heard.append(said)):
        report("rows", 1, 2)
        with listening(lambda *said: inner.append(said)):
            report("rows", 2, 2)
        thread = threading.Thread(target=report, args=("rows", 0, 9))
        thread.start()
        thread.join()
        report("tokens", 3, 4)
    report("rows", 2, 2)
    assert heard == [("rows", 1, 2), ("tokens", 3, 4)] and inner == [("rows", 2, 2)]


def test_a_number_that_costs_something_is_not_asked_for_at_every_pass():
    asked = []
    with Bar(total=1) as bar:
        for _ in range(1000):
            bar.part("tokens", lambda: asked.append(1) or len(asked), 5000)
    assert 1 <= len(asked) < 50
