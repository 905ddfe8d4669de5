"""Freed memory stays in the process: counted in page faults, in a process where no other test has allocated."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from taosr1.fast.malloc import keep_freed_memory
kept = keep_freed_memory()
def tensors():  # a few at a time, as a layer makes them
    for _ in range(10):
        [torch.ones(mib, 2**18) for mib in range(1, 9)]
tensors()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
tensors()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=clean | environment)
    kept, count = found.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_memory_of_freed_tensors_is_used_again_and_a_users_own_settings_are_left_alone():
    kept, count = faults()
    assert kept == "True" and count < 100
    kept, count = faults(MALLOC_MMAP_THRESHOLD_="131072")  # every tensor from the system, and back to it
    assert kept == "False" and count > 10_000
