"""A few hundred of the files of tests/faults/fuzz.py, and proof that it detects readers with a bug."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import fuzz
from fuzz_damage import OPERATORS, make

from taosr1.data import columns, csv_rows, dialect, duplicates, flatten, judgements, scales
from taosr1.runtime import bad_rows, encodings, jsonl, text_lines

pytestmark = pytest.mark.skipif(
    not hasattr(fuzz.signal, "SIGALRM"), reason="its time limit needs SIGALRM, which this system has not"
)


def test_no_damaged_file_crashes_a_reader_or_silently_changes_a_row():
    table, failures = fuzz.run(300, seed=0)
    assert failures == []
    assert sum(table["all files"].values()) == 300 and len(table) == len(OPERATORS) + 2  # every operator was used
    for verdict in ("all rows", "some skipped", "refused, row", "refused, file"):
        assert table["all files"][verdict] >= 10


def test_a_file_depends_on_its_seed_and_number_alone():
    assert make(3, 17)[0].data == make(3, 17)[0].data != make(3, 18)[0].data
    assert fuzz.main(["--files", "1", "--first", "5"]) == 0


def strip_text(monkeypatch):
    monkeypatch.setattr(jsonl, "clean_text", str.strip)


def lose_the_last_line(monkeypatch):
    read = text_lines.read_lines
    for reader in (csv_rows, jsonl):
        monkeypatch.setattr(reader, "read_lines", lambda *given: iter(list(read(*given))[:-1]))


def skip_in_silence(monkeypatch):
    monkeypatch.setattr(bad_rows, "print", lambda *_, **__: None, raising=False)


def take_what_was_unpacked(monkeypatch):
    def next_line(stream, path, number):
        try:
            return stream.readline()
        except Exception:
            return b""

    monkeypatch.setattr(text_lines, "_next_line", next_line)


def believe_repeated_ids(monkeypatch):
    monkeypatch.setattr(duplicates.Duplicates, "add", lambda *_: None)


def crash_on_a_bad_grade(monkeypatch):
    monkeypatch.setattr(scales, "canonical", lambda value: value and str(int(value)))


def replace_broken_bytes(monkeypatch):
    for reader in (csv_rows, jsonl):
        monkeypatch.setattr(reader, "damage_in", lambda *_, **__: "")


def forget_a_column(monkeypatch):
    parse = judgements.parse_judgement
    monkeypatch.setattr(
        judgements, "parse_judgement", lambda row: parse({name: row[name] for name in row if name != "sku"})
    )


def let_quotes_swallow_rows(monkeypatch):
    monkeypatch.setattr(dialect.RecordLines, "suspicious", False)
    monkeypatch.setattr(dialect._Signs, "count", lambda *_: None)


def show_nan_to_the_judge(monkeypatch):
    monkeypatch.setattr(flatten, "is_missing", lambda value: False)


def take_every_odd_byte_for_cp1252(monkeypatch):
    monkeypatch.setattr(encodings.Western, "decide", lambda self: True)


def take_the_first_of_two_columns(monkeypatch):
    def rename(self, row):
        found = {columns.KNOWN.get(columns._spelling(name), name): value for name, value in reversed(row.items())}
        return row if "product_title" in row else found

    monkeypatch.setattr(columns.ColumnNames, "rename", rename)


def read_every_table_by_commas(monkeypatch):
    monkeypatch.setattr(dialect, "_choose_delimiter", lambda *_: ",")


TWINS = [
    strip_text, lose_the_last_line, skip_in_silence, take_what_was_unpacked, believe_repeated_ids, crash_on_a_bad_grade,
    replace_broken_bytes, forget_a_column, let_quotes_swallow_rows, show_nan_to_the_judge,
    take_every_odd_byte_for_cp1252, take_the_first_of_two_columns, read_every_table_by_commas,
]  # fmt: skip


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_reader_with_a_bug_is_found(monkeypatch, twin, tmp_path):
    twin(monkeypatch)
    found = []
    for first in range(0, 300, 20):
        found = fuzz.run(20, seed=0, first=first, keep=tmp_path)[1]
        if found:
            break
    assert found and list(tmp_path.glob("seed0-*"))
