"""Replies that share a prompt against the plain rows: the same log-probs and gradients, fewer tokens computed."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.logprobs import completion_logp
from taosr1.fast.shared_prompts import attention_mask, find_prompts, share_prompts, worthwhile
from taosr1.fast.varlen_prompts import make_varlen
from taosr1.learning.batches import Batch, Example, collate
from taosr1.model.config import DecoderConfig, Llama3Scaling
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import completion_logp as plain_completion_logp

SHAPE = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
FAMILIES = {
    "qwen3": {},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama3": {"qk_norm": False, "rope_scaling": Llama3Scaling(4.0, 0.5, 2.0, 16), "rope_theta": 100.0},
    "mistral": {"qk_norm": False, "sliding_window": 5},
    "moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def model_of(family: str = "qwen3", dtype: torch.dtype = torch.float32) -> Decoder:
    model, generator = Decoder(DecoderConfig(**SHAPE, **FAMILIES[family])), torch.Generator().manual_seed(0)
    with torch.no_grad():  # large enough that what is attended to matters
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (1.0 if "norm" in name else 0.0))
    return model.to(dtype)


def sides(family: str, dtype: torch.dtype) -> list[tuple]:
    """The plain model with its function, and the fast ones."""
    plain, fast = model_of(family, dtype), use_fast_modules(model_of(family, dtype))
    return [(plain, plain_completion_logp), (fast, completion_logp)]


def count_tokens(model: Decoder) -> list[int]:
    """The number of tokens of every call of a model from now on."""
    tokens, hidden = [], model.hidden
    model.hidden = lambda ids, **given: tokens.append(ids.numel()) or hidden(ids, **given)
    return tokens


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(1, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(*groups: tuple[int, list[int]]) -> Batch:
    """Groups as (prompt length, reply lengths)."""
    return collate([
        Example(ids_of(prompt, 100 + number), ids_of(reply, 10 * number + index))
        for number, (prompt, replies) in enumerate(groups)
        for index, reply in enumerate(replies)
    ])  # fmt: skip


GROUPS = {
    "one group": [(12, [3, 5, 1, 4])],
    "ragged groups": [(12, [3, 5]), (9, [4]), (15, [2, 2, 6, 1])],
    "pairs": [(10, [4, 6]), (14, [6, 2])],
    "replies of one token": [(12, [1, 1, 1]), (13, [1, 1])],
    "a prompt of two": [(2, [2, 1, 1])],
}


@pytest.fixture(params=["varlen", "masked"])
def layout(request, monkeypatch) -> str:
    """Both ways to share a prompt; on a CPU varlen is used if its scores fit into memory."""
    if request.param == "masked":
        monkeypatch.setattr("taosr1.fast.shared_prompts.supported", lambda *_: False)
        monkeypatch.setattr("taosr1.fast.shared_prompts.worthwhile", lambda *_: True)
    return request.param


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_log_probs_and_gradients_equal_the_plain_ones(family, groups, layout):
    batch, results = batch_of(*GROUPS[groups]), []
    weights = torch.randn(batch.ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for model, function in sides(family, torch.float64):
        logp, entropy = function(model, batch.ids, batch.mask, temperature=0.7, with_entropy=True)
        (logp * weights).sum().backward()
        results.append([logp.detach(), entropy, *(parameter.grad for parameter in model.parameters())])
    for expected, got in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_gradients_agree_to_five_digits(family, layout):
    batch, results = batch_of((24, [3, 5, 1, 4]), (20, [2, 2])), []
    for model, function in sides(family, torch.float32):
        logp = function(model, batch.ids, batch.mask)
        logp.sum().backward()
        results.append([logp.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    for expected, got in zip(*results):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_a_prompt_is_computed_once_for_all_its_replies(layout):
    batch, found = batch_of((30, [4, 4, 4, 4])), []
    for model, function in sides("qwen3", torch.float32):
        tokens = count_tokens(model)
        function(model, batch.ids, batch.mask)
        found += tokens
    assert found == [4 * 33, 30 + 4 * 3]


@pytest.mark.parametrize("family", ["qwen3", "moe"])
def test_gradients_are_the_same_bits_every_time_on_several_threads(family, layout):
    """Large enough that torch adds the gradients of a row that is read several times with several threads."""
    shape = {**SHAPE, **FAMILIES[family], "hidden_size": 512, "num_hidden_layers": 1}
    model = use_fast_modules(Decoder(DecoderConfig(**shape)).init_weights(torch.Generator().manual_seed(0)))
    batch, found, threads = batch_of((12, [20] * 8), (10, [20] * 8)), [], torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(12):
            model.zero_grad()
            completion_logp(model, batch.ids, batch.mask).sum().backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)


def three_replies() -> Batch:
    """Prompt 1 2 3 with replies 4 5 and 6 7 8, and prompt 9 9 with reply 1."""
    return collate([Example([1, 2, 3], [4, 5]), Example([1, 2, 3], [6, 7, 8]), Example([9, 9], [1])])


def test_a_varlen_batch_by_hand():
    """Of the five columns that predict a token, two end a prompt. Last tokens of replies predict none."""
    batch = three_replies()
    varlen = make_varlen(batch.ids, *find_prompts(batch.ids, batch.mask))
    assert varlen.ids.tolist() == [[1, 2, 3, 9, 9, 4, 6, 7]] and varlen.positions.tolist() == [[0, 1, 2, 0, 1, 3, 3, 4]]
    assert varlen.keep.tolist() == [[2, 4, 5, 6, 7]]  # tokens 3, 9, 4, 6, 7
    # 4 and 6 after 3, 5 after 4, 7 after 6, 8 after 7, 1 after 9
    assert varlen.source[batch.mask].tolist() == [0, 2, 0, 3, 4, 1]
    assert varlen.reply_places.tolist() == [0, 2, 3] and varlen.grouping.prefix_of.tolist() == [0, 0, 1]


def test_with_too_many_scores_prompts_are_shared_by_masking(monkeypatch):
    model, calls = use_fast_modules(model_of()), []
    batch = batch_of((30, [4, 4, 4, 4]))
    monkeypatch.setattr("taosr1.fast.shared_prompts.make_varlen", lambda *given: calls.append(1) or make_varlen(*given))
    for limit in (4 * 4 * 4 * 34, 4 * 4 * 4 * 34 - 1):  # replies x heads x tokens x keys
        monkeypatch.setattr("taosr1.fast.varlen_prompts.SCORES_AT_ONCE", limit)
        completion_logp(model, batch.ids, batch.mask)
    assert calls == [1]
    unequal = batch_of((30, [4, 4, 4, 4]), (30, [4]), (30, [4]))  # three prompts, each with room for four replies
    monkeypatch.setattr("taosr1.fast.varlen_prompts.SCORES_AT_ONCE", 3 * 4 * 4 * 4 * 34 - 1)
    completion_logp(model, unequal.ids, unequal.mask)
    assert calls == [1]


def test_rows_of_different_prompts_share_nothing():
    batch = batch_of((12, [3]), (12, [5]), (9, [4]))
    assert share_prompts(batch.ids, batch.mask) is None
    same_tokens = collate([Example([5, 6, 7], [8, 9]), Example([5, 6], [7, 8, 9])])  # another end of the prompt
    assert share_prompts(same_tokens.ids, same_tokens.mask) is None
    longer = collate([Example([5, 6, 7, 8], [9]), Example([5, 6, 7, 1], [9])])
    assert share_prompts(longer.ids, longer.mask) is None


def test_rows_with_a_shared_prompt_by_hand():
    """The last tokens 5 and 8 predict nothing and are left out."""
    batch = three_replies()
    rows = share_prompts(batch.ids, batch.mask)
    assert rows.ids.tolist() == [[1, 2, 3, 4, 6, 7], [9, 9, 0, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 0, 0, 0, 0]]
    assert rows.segments.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1]]
    assert rows.row_of.tolist() == [0, 0, 1]
    # 4 and 6 are predicted at the prompt's end (column 2), 5 at column 3, 7 at 4, 8 at 5.
    assert rows.source[batch.mask].tolist() == [2, 3, 2, 4, 5, 1]
    assert attention_mask(rows, None)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 1, 0, 1, 1],
    ]
    # The last query has position 4 and attends to positions 3 and 4 of its own reply.
    windowed = attention_mask(rows, 2)[0, 0].int().tolist()
    assert windowed[5] == [0, 0, 0, 0, 1, 1] and windowed[4] == [0, 0, 1, 0, 1, 0]


def test_equal_rows_are_computed_once_with_the_gradient_of_all_of_them():
    weights = torch.randn(7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    prompt, other, reply = ids_of(12, 0), ids_of(9, 1), ids_of(4, 2)
    same, elsewhere, another = Example(prompt, reply), Example(other, reply), Example(prompt, ids_of(3, 3))
    longer_prompt = Example([*prompt, reply[0]], reply[1:])
    batch = collate([same, elsewhere, another, same, elsewhere, same, longer_prompt])
    batch.ids[~batch.mask[:, -1], -1] = -100  # padding that is no token
    results, calls = [], []
    for model, function in sides("qwen3", torch.float64):
        tokens = count_tokens(model)
        logp, entropy = function(model, batch.ids, batch.mask, temperature=0.7, with_entropy=True)
        (logp * weights).sum().backward()
        results.append([logp.detach(), entropy, *(parameter.grad for parameter in model.parameters())])
        calls += tokens
    for expected, found in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert bool((results[0][0][:, 1:] != 0)[batch.mask[:, 1:]].all())
    # The three prompts once, the last one a prompt of its own, and of each distinct reply all tokens but the last.
    assert calls == [7 * 15, (12 + 9 + 13) + (3 + 2 + 3 + 2)]


def test_long_replies_to_a_short_prompt_are_left_apart():
    sizes = {"hidden_size": 768, "intermediate_size": 2048}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64}
    config = DecoderConfig(vocab_size=61, num_hidden_layers=2, **sizes, **heads)
    assert worthwhile(config, (8, 256), (1, 192 + 8 * 64))
    assert not worthwhile(config, (8, 1010), (1, 10 + 8 * 1000))
