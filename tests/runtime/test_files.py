"""Folders with a manifest: complete or absent, and any file that is not what was written is named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from taosr1.runtime import files
from taosr1.runtime.files import (
    DamagedError,
    new_folder,
    read_checksummed,
    remove_folder,
    verify,
    write_checksummed,
    write_json,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    with new_folder(tmp_path / "step-000001") as aside:
        (aside / "weights.bin").write_bytes(bytes(range(256)) * 40)
        (aside / "empty").write_bytes(b"")
        (aside / "parts").mkdir()
        (aside / "parts" / "one.bin").write_bytes(b"one")
        (aside / "state.json").write_text("{}", encoding="utf-8")
    return tmp_path / "step-000001"


def test_a_whole_folder_passes_and_lists_every_file_with_its_size_and_hash(folder):
    verify(folder, required=True)
    listed = read_checksummed(folder / "manifest.json")["files"]
    assert sorted(listed) == ["empty", "parts/one.bin", "state.json", "weights.bin"]
    assert listed["empty"] == {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}


@pytest.mark.parametrize("name", ["weights.bin", "empty", "parts/one.bin", "state.json"])
def test_a_longer_shorter_or_missing_file_is_named_with_the_reason(folder, name):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(DamagedError, match=f"{name} has {len(data) + 1} bytes, but manifest.json says {len(data)}"):
        verify(folder)
    path.unlink()
    with pytest.raises(DamagedError, match=f"{name} is missing"):
        verify(folder)
    path.write_bytes(data)
    verify(folder)


def test_every_single_flipped_bit_is_found_also_in_the_manifest_itself(folder):
    for name in ("parts/one.bin", "state.json", "manifest.json"):
        path = folder / name
        data = path.read_bytes()
        for bit in range(0, 8 * len(data), 1 if len(data) < 10 else 7):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            with pytest.raises(DamagedError, match=name):
                verify(folder)
        path.write_bytes(data)
    verify(folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"files": 3}', '{"files": {"a": 1}}', "\x00", "{" * 100_000])
def test_a_manifest_that_is_something_else_is_named(folder, text):
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(DamagedError, match="manifest.json"):
        verify(folder)


def test_a_checkpoint_without_its_manifest_is_not_whole_but_another_folder_needs_none(folder, tmp_path):
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedError, match="manifest.json is missing, so this checkpoint cannot be verified"):
        verify(folder)
    (tmp_path / "model").mkdir()
    verify(tmp_path / "model")
    with pytest.raises(DamagedError, match="manifest.json is missing"):
        verify(tmp_path / "model", required=True)


def test_files_nobody_wants_are_not_read_and_files_added_later_are_let_be(folder):
    (folder / "weights.bin").write_bytes(b"")
    (folder / "tiering.json").write_text("{}", encoding="utf-8")
    verify(folder, without="weights")
    with pytest.raises(DamagedError, match="weights.bin"):
        verify(folder)


def test_a_folder_is_deleted_under_another_name_so_that_half_of_it_is_never_found(folder, monkeypatch):
    def fail(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.shutil, "rmtree", fail)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(folder)
    assert os.listdir(folder.parent) == [".deleting-step-000001"]


def test_a_small_file_can_carry_its_own_seal(tmp_path):
    path = tmp_path / "best.json"
    write_checksummed(path, {"step": 20, "score": 0.1 + 0.2})
    assert read_checksummed(path) == {"step": 20, "score": 0.1 + 0.2}
    write_json(path, {**json.loads(path.read_text(encoding="utf-8")), "step": 40})
    with pytest.raises(DamagedError, match="best.json is not as it was written"):
        read_checksummed(path)


def test_a_manifest_of_sixty_megabytes_of_files_costs_no_memory(tmp_path):
    """Hashing goes through a file in pieces."""
    import tracemalloc

    with new_folder(tmp_path / "step-000001") as aside:
        (aside / "big.bin").write_bytes(os.urandom(1024) * 60_000)
    tracemalloc.start()
    started = time.perf_counter()
    verify(tmp_path / "step-000001")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20 and time.perf_counter() - started < 60
