"""What `from taosr1.learning import ...` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import taosr1.learning


def test_the_mathematics_is_imported_from_the_package_by_its_names():
    losses = {"sft_loss", "dpo_loss", "grpo_loss", "group_advantages", "ordinal_target"}
    names = losses | {"completion_logp", "sequence_logp"}
    assert set(taosr1.learning.__all__) == names and all(callable(getattr(taosr1.learning, name)) for name in names)


def test_importing_the_mathematics_loads_neither_a_judge_nor_an_engine():
    program = "import sys, taosr1.learning; print(*sorted(name for name in sys.modules if name.startswith('taosr1.')))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    heavy = ("judge", "engine", "fast", "sampling", "data", "synthetic", "learning.loop", "learning.rollouts")
    assert "taosr1.learning.losses" in loaded
    assert not [name for name in loaded if name.removeprefix("taosr1.").startswith(heavy)], loaded
