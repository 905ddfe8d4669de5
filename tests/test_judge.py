"""The judge behind `--model`: fresh, from a run, from a plain Hugging Face folder; and what it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from taosr1.data.judgements import Judgement
from taosr1.judge_model import TINY, TINY_SHAPE, TINY_VOCAB, JudgeModel, fast_dtype, load_judge
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import train_tokenizer
from taosr1.runtime.files import DamagedError, new_folder, write_checksummed
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig, encode_prompt

SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 96}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def fresh() -> JudgeModel:
    return load_judge(TINY, seed=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> JudgeModel:
    """A judge with few positions, so that a long row does not fit."""
    texts = [f"{row.query} {row.title}\n{row.cot}" for row in read_pool("reasoned", 60)]
    tokenizer = train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer"))
    model = Decoder(DecoderConfig(tokenizer.vocab_size, **SHAPE)).init_weights(torch.Generator().manual_seed(0))
    return JudgeModel(model, tokenizer, PromptConfig(style="brief", fields=("title", "price")))


def weights(judge: JudgeModel) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in judge.model.parameters()])


def test_the_tiny_judge_has_fresh_weights_from_its_seed_and_always_the_same_tokenizer(fresh):
    assert fresh.model.config == DecoderConfig(vocab_size=fresh.tokenizer.vocab_size, **TINY_SHAPE)
    assert fresh.tokenizer.vocab_size == TINY_VOCAB and 0.7e6 < weights(fresh).numel() < 1e6
    again, other = load_judge(TINY, seed=1), load_judge(TINY, seed=2, order="pre-cot")
    assert torch.equal(weights(again), weights(fresh)) and not torch.equal(weights(other), weights(fresh))
    assert fresh.prompt == PromptConfig("post-cot", "brief", ("title", "price")) and other.prompt.order == "pre-cot"
    text = "looking for crimson joggers cheaper than Vantor $17"
    assert again.tokenizer.encode_text(text) == fresh.tokenizer.encode_text(text)


def test_the_tiny_tokenizer_reads_the_world_in_few_tokens(fresh):
    rows = read_pool("dev", 200)
    prompts = fresh.prompts(rows)
    assert sum(map(len, prompts)) / len(prompts) < 35
    assert fresh.tokenizer.decode(prompts[0]).endswith(f" {rows[0].title} {rows[0].price}<|assistant|>")


def test_a_saved_judge_comes_back_and_may_be_asked_in_another_order(small, tmp_path):
    save_pretrained(small.model, small.tokenizer, tmp_path)
    plain = load_judge(str(tmp_path))
    assert plain.prompt == PromptConfig()  # a folder that never met taosr1 is asked in full
    replace(small.prompt, order="pre-cot").save(tmp_path)
    found = load_judge(str(tmp_path))
    assert found.prompt == replace(small.prompt, order="pre-cot") and torch.equal(weights(found), weights(small))
    assert load_judge(str(tmp_path), order="label").prompt == replace(small.prompt, order="label")
    assert load_judge(str(tmp_path), dtype="bfloat16").model.model.norm.weight.dtype == torch.bfloat16


def test_a_run_folder_stands_for_its_best_checkpoint_or_its_newest(small, tmp_path):
    for step in (5, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        with new_folder(folder) as aside:
            save_pretrained(small.model, small.tokenizer, aside)
            replace(small.prompt, max_chars=step).save(aside)
    save_pretrained(small.model, small.tokenizer, tmp_path / "checkpoints" / ".writing-step-000015")
    assert load_judge(str(tmp_path)).prompt.max_chars == 10
    write_checksummed(tmp_path / "checkpoints" / "best.json", {"step": 5})
    assert load_judge(str(tmp_path)).prompt.max_chars == 5
    (folder / "manifest.json").unlink()
    (tmp_path / "checkpoints" / "best.json").unlink()
    with pytest.raises(DamagedError, match="step-000010/manifest.json is missing"):
        load_judge(str(tmp_path))


def test_a_run_without_a_checkpoint_a_missing_folder_and_an_unknown_device_are_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FileNotFoundError, match=f"--model {tmp_path}: the run has no complete checkpoint yet"):
        load_judge(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_judge(str(tmp_path / "gone" / "model"))
    for device in ("tpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"--device {device}: not usable here"):
            load_judge(TINY, device=device)


def test_a_prompt_that_is_too_long_is_shown_with_shorter_texts_and_no_row_is_lost(small):
    rows = [
        Judgement("travel mug", "Hollin steel travel mug", price="$16"),
        Judgement("杯子" * 300, "旅行" * 5000, price="¥" * 700),
        Judgement("x" * 10_000, "<b>🧦</b>" * 2000),
        Judgement("mug", ""),
    ]
    prompts = small.prompts(rows)
    assert prompts[0] == encode_prompt(small.tokenizer, rows[0], small.prompt)
    room = 96 - 24
    assert len(prompts) == 4 and all(0 < len(prompt) <= room for prompt in prompts)
    shorter = [replace(small.prompt, max_chars=600 >> shift) for shift in range(10)]
    halved = [encode_prompt(small.tokenizer, rows[1], prompt) for prompt in shorter]
    assert prompts[1] == next(ids for ids in halved if len(ids) <= room)  # as much of it as fits


def test_a_sampled_reply_is_read_without_its_end(small):
    ids = small.tokenizer.encode_text("4\nQuery: mug")
    assert small.reply_text([*ids, small.tokenizer.eos_ids[0]]) == "4\nQuery: mug" == small.reply_text(ids)


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"avx2": True}, "float32"),
        ({}, "float32"),
    ],
)
def test_bfloat16_is_fast_where_the_cpu_multiplies_it(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert fast_dtype() == expected
