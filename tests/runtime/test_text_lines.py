"""Bytes of a file as lines: what is read as it is, what is marked, and what is refused as a whole."""

from __future__ import annotations

import gzip
import io
import os
import signal

import pytest

from taosr1.data.judgements import read_judgements
from taosr1.runtime import text_lines as lines
from taosr1.runtime.text_lines import DamagedFile, check_file, damage_in, read_lines, rows_in

TEXT = '{"query": "café", "title": "靴"}\r\n\n{"query": "mug", "title": "Mug"}'
EXPECTED = [(1, '{"query": "café", "title": "靴"}\r\n'), (2, "\n"), (3, '{"query": "mug", "title": "Mug"}')]


def read(path, data):
    path.write_bytes(data)
    return list(read_lines(path))


def refusal(path, data):
    with pytest.raises(DamagedFile) as caught:
        read(path, data)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("packed", [False, True])
def test_lines_are_the_same_with_a_mark_and_gzipped_whatever_the_name(tmp_path, name, mark, packed):
    data = mark + TEXT.encode()
    assert read(tmp_path / name, gzip.compress(data) if packed else data) == EXPECTED


def test_only_one_mark_is_left_out_and_only_at_the_beginning(tmp_path):
    mark = "\ufeff"
    assert read(tmp_path / "a", f"{mark}{mark}a\n{mark}b\n".encode()) == [(1, f"{mark}a\n"), (2, f"{mark}b\n")]


def test_gzip_members_follow_each_other_and_zero_bytes_behind_them_are_padding(tmp_path):
    half = len(TEXT.encode()) // 2
    members = gzip.compress(TEXT.encode()[:half]) + gzip.compress(b"") + gzip.compress(TEXT.encode()[half:])
    assert read(tmp_path / "a.gz", members) == read(tmp_path / "a.gz", members + bytes(700)) == EXPECTED


@pytest.mark.parametrize("data", [b"", gzip.compress(b""), b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_lines(tmp_path, data):
    assert [line for _, line in read(tmp_path / "a.jsonl.gz", data)] in ([], [""])


def test_every_cut_and_every_wrong_checksum_of_gzip_data_is_noticed(tmp_path):
    data = gzip.compress(TEXT.encode() * 50)
    for keep in range(2, len(data)):
        assert "damaged or cut off gzip data" in refusal(tmp_path / "a.gz", data[:keep])
    for place in range(len(data) - 8, len(data)):  # checksum and length, which come last
        flipped = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        assert "damaged or cut off gzip data" in refusal(tmp_path / "a.gz", flipped)
    assert "damaged or cut off gzip data" in refusal(tmp_path / "a.gz", data + b"rubbish")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\x03\x04rest", "this is a zip archive"),
        (b"BZh91AY&SYrest", "this is bzip2 data"),
        (b"\xfd7zXZ\0rest", "this is xz data"),
        (b"\x28\xb5\x2f\xfdrest", "this is Zstandard data"),
        (b"PAR1\x15\x04rest", "this is parquet data"),
        (b"\x1f\x0b\x08rest", "named .gz, but this is not gzip data"),
        (b"\0\x8b\x08rest", "named .gz, but this is not gzip data"),
        (b"?\x8b\x08rest", "named .gz, but this is not gzip data"),
    ],
)
def test_files_of_another_format_are_named(tmp_path, data, message):
    assert message in refusal(tmp_path / "a.jsonl.gz", data)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_utf_32_is_refused_with_and_without_a_mark(tmp_path, encoding, packed, mark):
    data = (mark + TEXT).encode(encoding)
    assert f"this file is {encoding[:6].upper()}, expected UTF-8" in refusal(
        tmp_path / "a.jsonl", gzip.compress(data) if packed else data
    )


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"caf\xe9", "not UTF-8: byte 0xe9"),
        (b"\xed\xa0\x80", "not UTF-8: byte 0xed"),
        (b"\xc0\x80", "not UTF-8: byte 0xc0"),
        (b"a\0", "NUL byte in the text"),
        (b"\0\0\0\0\0", "NUL byte"),
        ("é\u2028😀".encode(), ""),
    ],
)
def test_broken_bytes_are_marked_in_their_line_alone(tmp_path, data, problem):
    found = read(tmp_path / "a", b"fine\n" + data + b"\nfine\n")
    assert [damage_in(line)[: len(problem)] for _, line in found] == ["", problem, ""]
    assert bool(damage_in(found[1][1])) == bool(problem)


def test_a_line_beyond_the_limit_is_refused_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    assert read(tmp_path / "a", b"x" * 999 + b"\n" + b"y" * 1000) == [(1, "x" * 999 + "\n"), (2, "y" * 1000)]
    assert "a:2: a line of more than 1000 bytes" in refusal(tmp_path / "a", b"x\n" + b"y" * 5000 + b"\n")


def test_rows_of_an_old_mac_are_counted():
    assert [rows_in(line) for line in ("a\n", "a\r\n", "a\rb\rc", "a\r\r\n", "\n", "")] == [1, 1, 3, 1, 1, 1]


@pytest.mark.parametrize(
    "change", [lambda file: file.truncate(7000), lambda file: file.write(b"more\n"), lambda file: file.truncate(0)]
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, name, change):
    path = tmp_path / name
    row = b'{"query": "mug", "title": "Mug", "n": "%d"}\n'
    data = b"".join(row % number for number in range(30_000))
    path.write_bytes(gzip.compress(data, 0) if name.endswith(".gz") else data)
    found = read_lines(path)
    next(found)
    with open(path, "ab") as file:
        change(file)
    with pytest.raises(DamagedFile, match="the file changed while it was read|damaged or cut off gzip data") as caught:
        list(found)
    assert str(path) in str(caught.value)


def test_a_file_that_is_deleted_while_it_is_read_is_still_read(tmp_path):
    (tmp_path / "a").write_bytes(b"line\n" * 10_000)
    found = read_lines(tmp_path / "a")
    next(found)
    (tmp_path / "a").unlink()
    assert len(list(found)) == 9_999


def test_a_failing_disk_and_a_file_without_permission_are_named(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        """A file whose first bytes can be read, and whose lines cannot."""

        def fileno(self):
            return 0

        def peek(self, size):
            return self.getvalue()[:size]

        def readline(self, *_):
            raise OSError(5, "Input/output error")

    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n")
    monkeypatch.setattr(lines, "open", lambda *_: Failing(b"{}"), raising=False)
    with pytest.raises(OSError, match=r"Input/output error \(line 1\).*a\.jsonl"):
        list(read_lines(path))
    monkeypatch.undo()
    if os.geteuid() == 0:
        monkeypatch.setattr(lines, "open", lambda path, _: os.fdopen(_refused(path)), raising=False)
    else:
        path.chmod(0)
    with pytest.raises(PermissionError, match=r"a\.jsonl"):
        read_judgements(path)


def _refused(path):
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    def late(*_):
        raise AssertionError("it waits for a writer that never comes")

    os.mkfifo(tmp_path / "pipe.jsonl")
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        for path in (tmp_path / "pipe.jsonl", "/dev/null", "/dev/zero"):
            with pytest.raises(
                ValueError, match="is a pipe or a device, expected a file: save its rows first, then check --data"
            ):
                read_judgements(path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_missing_file_a_folder_and_a_dangling_link_name_the_flag(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("gone", "link"):
        with pytest.raises(FileNotFoundError, match=f"no file at .*{name}: check --scores"):
            check_file(tmp_path / name, "--scores")
    with pytest.raises(ValueError, match="is a folder, expected a file: check --data"):
        check_file(tmp_path)
