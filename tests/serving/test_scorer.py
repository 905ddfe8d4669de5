"""Scores are the label probabilities with their grade and tier, in input order, from the real decoder."""

from __future__ import annotations

import pytest
import torch

from taosr1.judge_model import JudgeModel
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.sampling import label_probabilities
from taosr1.serving.calibration import apply_temperature
from taosr1.serving.scorer import score_prompts
from taosr1.serving.tiering import cumulative_tier
from taosr1.task.grades import TIERS
from taosr1.task.prompt import PromptConfig


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    texts = [f"query {n} boots not leather title steel mug grade {n % 4 + 1}" for n in range(200)]
    return train_tokenizer(texts, 300, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def judge(tokenizer) -> JudgeModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = DecoderConfig(tokenizer.vocab_size, **shape, num_key_value_heads=2, head_dim=8, max_position_embeddings=64)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():  # fresh weights are so small that every probability is alike
        model.model.embed_tokens.weight.mul_(30)
    return JudgeModel(model, tokenizer, PromptConfig())


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(tokenizer.vocab_size, (3 + n % 7,), generator=generator).tolist() for n in range(40)]


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.9])
def test_scores_are_the_label_probabilities_with_argmax_and_cumpt(judge, tokenizer, prompts, beta):
    found = label_probabilities(judge.model, tokenizer, prompts)
    scores = score_prompts(judge, prompts, beta=beta)
    assert [score.probs for score in scores] == [tuple(row) for row in found.probs.tolist()]
    assert [score.label_mass for score in scores] == found.label_mass.tolist()
    assert [score.grade for score in scores] == [row.index(max(row)) + 1 for row in found.probs.tolist()]
    assert [score.tier for score in scores] == cumulative_tier(found.probs, beta)
    assert {score.tier for score in scores} == set(TIERS)  # all of them occur, so a swap would have shown


def test_raising_beta_never_lifts_a_score(judge, tokenizer, prompts):
    low, high = (score_prompts(judge, prompts, beta=beta) for beta in (0.3, 0.8))
    assert all(TIERS.index(b.tier) >= TIERS.index(a.tier) for a, b in zip(low, high))


def test_temperature_scales_what_is_reported_and_tiered_and_leaves_grades(judge, tokenizer, prompts):
    plain, scaled = (score_prompts(judge, prompts, beta=0.8, temperature=temperature) for temperature in (1.0, 4.0))
    expected = apply_temperature([score.probs for score in plain], 4.0)
    assert [score.probs for score in scaled] == [tuple(row) for row in expected.tolist()]
    assert [score.tier for score in scaled] == cumulative_tier(expected, 0.8) != [score.tier for score in plain]
    assert [(score.grade, score.label_mass) for score in scaled] == [(score.grade, score.label_mass) for score in plain]
    assert score_prompts(judge, [], temperature=4.0) == []


def test_no_prompts_have_no_scores_and_a_wrong_beta_is_refused(judge, tokenizer, prompts):
    assert score_prompts(judge, []) == []
    with pytest.raises(ValueError, match=r"beta is 1.5, expected a number in \(0, 1\]"):
        score_prompts(judge, prompts, beta=1.5)
