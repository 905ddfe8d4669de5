"""The digest of a model differs with everything that decides its replies, and does not depend on its folder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taosr1.judge_model import load_judge
from taosr1.model.io.digest import model_digest
from taosr1.model.io.weights import load_pretrained, save_pretrained
from taosr1.model.lora import LoraConfig, add_adapters


@pytest.fixture(scope="module")
def judge():
    return load_judge("tiny")


def test_a_copy_elsewhere_is_the_same_model(judge, tmp_path):
    save_pretrained(judge.model, judge.tokenizer, tmp_path / "a")
    model, tokenizer = load_pretrained(tmp_path / "a")
    save_pretrained(model, tokenizer, tmp_path / "b" / "c")
    assert model_digest(model, tokenizer) == model_digest(*load_pretrained(tmp_path / "b" / "c"))


def test_a_single_changed_weight_another_type_prompt_or_shape_is_another_model(judge):
    model, tokenizer = judge.model, judge.tokenizer
    found = [model_digest(model, tokenizer, *settings)
             for settings in ((), (judge.prompt,), (replace(judge.prompt, order="label"),))]  # fmt: skip
    for parameter in (*list(model.parameters())[:1], *list(model.parameters())[-1:]):
        value = parameter.data.view(-1)[-1].clone()
        parameter.data.view(-1)[-1] = torch.nextafter(value, value + 1)
        found.append(model_digest(model, tokenizer))
        parameter.data.view(-1)[-1] = value
    assert model_digest(model, tokenizer) == found[0]
    config = model.config
    model.config = replace(config, rope_theta=20000.0)
    found.append(model_digest(model, tokenizer))
    model.config = config
    found.append(model_digest(load_judge("tiny").model.to(torch.bfloat16), tokenizer))
    for alpha in (8, 16):  # a fresh adapter changes no weight, but another alpha is another scale
        adapted = add_adapters(load_judge("tiny").model, LoraConfig(2, alpha), torch.Generator().manual_seed(0))
        found.append(model_digest(adapted, tokenizer))
    assert len(set(found)) == len(found)
