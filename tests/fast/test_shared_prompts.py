"""Packed replies against the plain rows: the same log-probs, the same gradients, fewer tokens computed."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast.shared_prompts import attends, pack_rows, pays, shared_with_above
from taosr1.fast.varlen_prompts import lay_flat
from taosr1.learning.batches import Example, collate, group_batches
from taosr1.model.config import Llama3Scaling
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.logprobs import completion_logp

SHAPE = {"vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
         "head_dim": 8, "max_position_embeddings": 64}  # fmt: skip
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


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(1, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(*groups: tuple[int, list[int]]):
    """Groups as (prompt length, reply lengths)."""
    examples = [Example(ids_of(prompt, 100 + number), ids_of(reply, 10 * number + index)) for number, (prompt, replies) in enumerate(groups)
                for index, reply in enumerate(replies)]  # fmt: skip
    return collate(examples)


GROUPS = {
    "one group": [(12, [3, 5, 1, 4])],
    "ragged groups": [(12, [3, 5]), (9, [4]), (15, [2, 2, 6, 1])],
    "pairs": [(10, [4, 6]), (14, [6, 2])],
    "replies of one token": [(12, [1, 1, 1]), (13, [1, 1])],
    "a prompt of two": [(2, [2, 1, 1])],
}


@pytest.fixture(params=["flat", "packed"])
def layout(request, monkeypatch) -> str:
    """Both ways to share a prompt; on a CPU the flat one is taken where its scores fit."""
    if request.param == "packed":
        monkeypatch.setattr("taosr1.fast.shared_prompts.fits", lambda *_: False)
        monkeypatch.setattr("taosr1.fast.shared_prompts.pays", lambda *_: True)
    return request.param


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_log_probs_and_gradients_equal_the_plain_ones(family, groups, layout):
    model, batch = model_of(family, torch.float64), batch_of(*GROUPS[groups])
    weights, results = torch.randn(batch.ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)), []
    for plain in (True, False):
        model.zero_grad()
        logp, entropy = completion_logp(model, batch.ids, batch.mask, temperature=0.7, with_entropy=True, plain=plain)
        (logp * weights).sum().backward()
        results.append([logp.detach(), entropy, *(parameter.grad.clone() for parameter in model.parameters())])
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float32_the_gradients_agree_to_five_digits(family, layout):
    model, batch, results = model_of(family), batch_of((24, [3, 5, 1, 4]), (20, [2, 2])), []
    for plain in (True, False):
        model.zero_grad()
        logp = completion_logp(model, batch.ids, batch.mask, plain=plain)
        logp.sum().backward()
        results.append([logp.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-5)
    for got, expected in zip(*results):
        assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_prompts_are_computed_once_where_they_are_shared(layout):
    model, tokens = model_of(), []
    hidden = model.hidden
    model.hidden = lambda ids, **given: tokens.append(ids.numel()) or hidden(ids, **given)
    batch = batch_of((30, [4, 4, 4, 4]))
    completion_logp(model, batch.ids, batch.mask)
    completion_logp(model, batch.ids, batch.mask, plain=True)
    assert tokens == [30 + 4 * 3, 4 * 33]


@pytest.mark.parametrize("family", ["qwen3", "moe"])
def test_gradients_are_the_same_bits_every_time_on_several_threads(family, layout):
    """Large enough that torch adds the gradients of what is read several times (a prompt's last token) with several threads."""
    shape = {**SHAPE, **FAMILIES[family], "hidden_size": 512, "num_hidden_layers": 1}
    model, found, threads = Decoder(DecoderConfig(**shape)).init_weights(torch.Generator().manual_seed(0)), [], torch.get_num_threads()
    batch = batch_of((12, [20] * 8), (10, [20] * 8))
    try:
        torch.set_num_threads(4)
        for _ in range(12):
            model.zero_grad()
            completion_logp(model, batch.ids, batch.mask).sum().backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)


def test_a_flat_layout_by_hand():
    """Prompt 1 2 3, replies 4 5 and 6 7 8; prompt 9 9, reply 1. Of the seven tokens that are read, two end a prompt."""
    batch = collate([Example([1, 2, 3], [4, 5]), Example([1, 2, 3], [6, 7, 8]), Example([9, 9], [1])])
    flat = lay_flat(batch.ids, *shared_with_above(batch.ids, batch.mask))
    assert flat.ids.tolist() == [[1, 2, 3, 9, 9, 4, 6, 7]] and flat.positions.tolist() == [[0, 1, 2, 0, 1, 3, 3, 4]]
    assert flat.read.tolist() == [[2, 4, 5, 6, 7]]  # 3, 9, 4, 6, 7
    assert flat.source[batch.mask].tolist() == [0, 2, 0, 3, 4, 1]  # 4 and 6 after 3, 5 after 4, 7 after 6, 8 after 7, 1 after 9
    assert flat.reply_places.tolist() == [0, 2, 3] and flat.grid.prefix_of.tolist() == [0, 0, 1]


def test_scores_that_would_not_fit_are_packed_instead(monkeypatch):
    model, calls = model_of(), []
    batch = batch_of((30, [4, 4, 4, 4]))
    monkeypatch.setattr("taosr1.fast.shared_prompts.lay_flat", lambda *given: calls.append(1) or lay_flat(*given))
    for limit in (4 * 4 * 4 * 34, 4 * 4 * 4 * 34 - 1):  # replies x heads x tokens x what they see
        monkeypatch.setattr("taosr1.fast.varlen_prompts.SCORES_AT_ONCE", limit)
        completion_logp(model, batch.ids, batch.mask)
    assert calls == [1]
    unequal = batch_of((30, [4, 4, 4, 4]), (30, [4]), (30, [4]))  # three prompts, each with room for four replies
    monkeypatch.setattr("taosr1.fast.varlen_prompts.SCORES_AT_ONCE", 3 * 4 * 4 * 4 * 34 - 1)
    completion_logp(model, unequal.ids, unequal.mask)
    assert calls == [1]


def test_rows_of_different_prompts_are_left_alone():
    batch = batch_of((12, [3]), (12, [5]), (9, [4]))
    assert pack_rows(batch.ids, batch.mask) is None
    same_tokens = collate([Example([5, 6, 7], [8, 9]), Example([5, 6], [7, 8, 9])])  # another border between prompt and reply
    assert pack_rows(same_tokens.ids, same_tokens.mask) is None
    longer = collate([Example([5, 6, 7, 8], [9]), Example([5, 6, 7, 1], [9])])
    assert pack_rows(longer.ids, longer.mask) is None


def test_a_pack_by_hand():
    """Prompt 1 2 3, replies 4 5 and 6 7 8: the last tokens 5 and 8 predict nothing and are left out."""
    batch = collate([Example([1, 2, 3], [4, 5]), Example([1, 2, 3], [6, 7, 8]), Example([9, 9], [1])])
    packed = pack_rows(batch.ids, batch.mask)
    assert packed.ids.tolist() == [[1, 2, 3, 4, 6, 7], [9, 9, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 3, 4], [0, 1, 0, 0, 0, 0]]
    assert packed.segments.tolist() == [[0, 0, 0, 1, 2, 2], [0, 0, -1, -1, -1, -1]]
    assert packed.pack.tolist() == [0, 0, 1]
    # 4 and 6 are predicted at the prompt's end (column 2), 5 at column 3, 7 at 4, 8 at 5.
    assert packed.source[batch.mask].tolist() == [2, 3, 2, 4, 5, 1]
    seen = attends(packed, None)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 1]]
    windowed = attends(packed, 2)[0, 0].int().tolist()  # the last query stands at position 4 and sees positions 3 and 4 of its own reply
    assert windowed[5] == [0, 0, 0, 0, 1, 1] and windowed[4] == [0, 0, 1, 0, 1, 0]


def test_equal_rows_are_run_once_with_the_gradient_of_all_of_them(monkeypatch):
    model, weights = model_of(dtype=torch.float64), torch.randn(7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    prompt, other, reply = ids_of(12, 0), ids_of(9, 1), ids_of(4, 2)
    batch = collate([Example(prompt, reply), Example(other, reply), Example(prompt, ids_of(3, 3)), Example(prompt, reply), Example(other, reply), Example(prompt, reply),
                     Example([*prompt, reply[0]], reply[1:])])  # fmt: skip
    batch.ids[~batch.mask[:, -1], -1] = -100  # padding that nobody looks up
    results, tokens, hidden = [], [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda ids, **given: tokens.append(ids.numel()) or hidden(ids, **given))
    for plain in (True, False):
        model.zero_grad()
        logp, entropy = completion_logp(model, batch.ids, batch.mask, temperature=0.7, with_entropy=True, plain=plain)
        (logp * weights).sum().backward()
        results.append([logp.detach(), entropy, *(parameter.grad.clone() for parameter in model.parameters())])
    for found, expected in zip(*results):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert bool((results[1][0][:, 1:] != 0)[batch.mask[:, 1:]].all())
    # The three prompts once, the last one a prompt of its own, and of each of the four different replies all tokens but the last.
    assert tokens == [7 * 15, (12 + 9 + 13) + (3 + 2 + 3 + 2)]


def test_long_replies_behind_a_short_prompt_are_left_apart():
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 6, "head_dim": 64}
    config = DecoderConfig(vocab_size=61, num_hidden_layers=2, **sizes)
    assert pays(config, (8, 256), (1, 192 + 8 * 64))
    assert not pays(config, (8, 1010), (1, 10 + 8 * 1000))


def test_siblings_stay_side_by_side_and_count_their_prompt_once():
    groups = [[Example(ids_of(20, g), ids_of(4, 10 * g + i)) for i in range(4)] for g in range(5)]  # 36 tokens a group, 96 unpacked
    batches = group_batches(groups, 72)
    assert sorted(map(len, batches)) == [4, 8, 8]
    for batch in batches:
        for start in range(0, len(batch), 4):
            assert len({tuple(example.prompt) for example in batch[start : start + 4]}) == 1
    cut = group_batches(groups[:1], 28)  # two replies fit beside their prompt
    assert [len(batch) for batch in cut] == [2, 2] and cut[0] + cut[1] == groups[0]
    assert [len(batch) for batch in group_batches(groups[:1], 1)] == [1, 1, 1, 1]  # nothing fits: one at a time
    assert group_batches([], 100) == []
