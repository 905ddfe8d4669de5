"""The benchmark of sampling compares log-probs in bfloat16: rounding passes, and a fault larger than that doesn't."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from examples.benchmarks import common, sampler
from examples.benchmarks.sampler_peers import Work
from taosr1.judge_model import BUNDLED_FOLDER


def test_rounding_to_bfloat16_passes_and_positions_that_turn_too_slowly_do_not():
    pytest.importorskip("transformers", reason="the benchmark compares with transformers (pip install .[dev])")
    theirs = common.load_transformers(BUNDLED_FOLDER, torch.bfloat16)
    right, wrong = (common.load_fast(BUNDLED_FOLDER, torch.bfloat16) for _ in range(2))
    work = Work(common.random_ids([40, 25], right.config.vocab_size), samples=4, new_tokens=24)
    assert "from float32's" in sampler.compare(right, theirs, work, "thinker-bfloat16")
    wrong.config = replace(wrong.config, rope_theta=2 * wrong.config.rope_theta)
    with pytest.raises(SystemExit, match="allowed are 2.0 times as much"):
        sampler.compare(wrong, theirs, work, "thinker-bfloat16")
