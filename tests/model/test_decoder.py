"""The decoder against itself by other routes, and against committed numbers. Against transformers: test_parity.py.

`make_model` gives the plain decoder; `any_model` runs a test with the fast modules too.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taosr1.fast.decoder import FastDecoder, use_fast_modules
from taosr1.fast.kv_cache import FastKVCache
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.kv_cache import KVCache
from taosr1.model.norm import RMSNorm

LENGTHS = (7, 1, 12, 4)


def ragged(lengths=LENGTHS, *, vocab: int = 97, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of these lengths, padded on the right with random ids: padding content must not matter."""
    ids = torch.randint(vocab, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor(lengths)


def cache_of(model, rows: int, capacity: int) -> KVCache:
    return (FastKVCache if isinstance(model, FastDecoder) else KVCache)(model.config, rows, capacity)


@pytest.fixture(params=["plain", "fast"])
def any_model(request, make_model):
    if request.param == "plain":
        return make_model
    return lambda *family, **changes: use_fast_modules(make_model(*family, **changes))


def test_cached_logits_equal_uncached_however_the_prompt_is_cut(family, any_model, assert_close):
    model = any_model(family)
    ids, _ = ragged((12, 12, 12))
    with torch.no_grad():
        whole = model(ids)
        for cuts in ((12,), (5, 7), (1, 1, 10), (1,) * 12, (6, 1, 1, 4)):
            cache, parts = cache_of(model, 3, 16), []
            for part in ids.split(cuts, dim=1):
                parts.append(model(part, cache=cache))
                cache.lengths += part.shape[1]
            assert_close(torch.cat(parts, 1), whole)


def test_every_row_of_a_ragged_batch_equals_the_row_alone(family, any_model, assert_close):
    model = any_model(family)
    ids, lengths = ragged()
    with torch.no_grad():
        batch = model(ids)
        for row, length in enumerate(lengths.tolist()):
            assert_close(batch[row : row + 1, :length], model(ids[row : row + 1, :length]))


@pytest.mark.parametrize("chunk", [1, 3])
def test_cached_decoding_of_a_ragged_batch_equals_each_row_alone(chunk, family, any_model, assert_close):
    """After a right-padded prefill the next tokens go to each row's own positions, over what padding wrote there."""
    model = any_model(family)
    ids, lengths = ragged()
    new, _ = ragged((6,) * 4, seed=2)
    cache = cache_of(model, 4, 32)
    with torch.no_grad():
        model(ids, cache=cache)
        cache.lengths.copy_(lengths)
        steps = []
        for part in new.split(chunk, dim=1):
            steps.append(model(part, cache=cache))
            cache.lengths += chunk
        decoded = torch.cat(steps, 1)
        for row, length in enumerate(lengths.tolist()):
            alone = model(torch.cat((ids[row, :length], new[row]))[None])
            assert_close(decoded[row], alone[0, length:])


def test_ragged_chunks_after_a_ragged_prefill_equal_each_row_alone(any_model, assert_close):
    model = any_model()
    ids, lengths = ragged()
    more, more_lengths = ragged((2, 5, 1, 3), seed=4)
    last, _ = ragged((1,) * 4, seed=5)
    cache = cache_of(model, 4, 32)
    with torch.no_grad():
        for part, part_lengths in ((ids, lengths), (more, more_lengths)):
            model(part, cache=cache)
            cache.lengths += part_lengths
        decoded = model(last, cache=cache)
        for row in range(4):
            text = torch.cat((ids[row, : lengths[row]], more[row, : more_lengths[row]], last[row]))
            assert_close(decoded[row, 0], model(text[None])[0, -1])


def test_explicit_positions_equal_the_default_ones(any_model, assert_close):
    model = any_model()
    ids, _ = ragged()
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.no_grad():
        expected = model(ids)
        assert_close(model(ids, positions=positions), expected)
        assert_close(model(ids, positions=positions, cache=cache_of(model, 4, 32)), expected)
        assert_close(model(ids, positions=positions + 9), expected)  # rotary positions are relative
        assert (model(ids, positions=positions * 2) - expected).abs().max() > 0.1  # but spacing is not


def test_a_later_token_never_changes_an_earlier_logit(any_model):
    model = any_model()
    ids, _ = ragged((9,))
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 97
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().amax(-1).min() > 1e-3


def golden_model(family: str, make_model) -> Decoder:
    """Weights from a formula, so that no random number generator can change under the committed logits."""
    model = make_model(family, vocab_size=7)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            index = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(index**2 * 1.7 + number) * 0.5 + (1.5 if "norm" in name else 0.0)
            parameter.copy_(wave.view(parameter.shape))
    return model


def test_logits_equal_the_committed_ones(family, any_model, assert_close):
    golden = json.loads((Path(__file__).parent / "golden_logits.json").read_text())
    with torch.no_grad():
        logits = golden_model(family, any_model)(torch.tensor([golden["ids"]]))[0]
    assert_close(logits, torch.tensor(golden[family]))


def test_the_head_is_the_embedding_where_tied_and_its_own_matrix_where_not(make_model):
    tied, untied = make_model(), make_model(tie_word_embeddings=False)
    assert "lm_head.weight" not in tied.state_dict()
    assert untied.state_dict()["lm_head.weight"].shape == (97, 24)
    ids, _ = ragged((3,))
    for model in (tied, untied):
        assert torch.equal(model(ids), model.head(model.hidden(ids)))


def test_gradients_reach_every_parameter(family, any_model):
    model = any_model(family, tie_word_embeddings=family == "qwen2")
    ids, _ = ragged()
    model(ids).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in model.named_parameters())


def test_activation_checkpointing_changes_no_gradient(family, any_model):
    ids, _ = ragged()
    model, grads = any_model(family), []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        model(ids).log_softmax(-1)[..., 3].mean().backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    with torch.no_grad():  # and sampling still has its cache
        assert torch.equal(model(ids, cache=cache_of(model, 4, 16)), model(ids, cache=cache_of(model, 4, 16)))


def test_activation_checkpointing_keeps_one_tensor_a_layer(any_model):
    model, ids = any_model(num_hidden_layers=6), torch.randint(97, (4, 48), generator=torch.Generator().manual_seed(0))
    kept = {}
    for model.activation_checkpointing in (False, True):
        sizes: list[int] = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.hidden(ids).sum()
        kept[model.activation_checkpointing] = sum(sizes)
    assert kept[True] < 0.35 * kept[False]


def test_training_in_bfloat16_has_the_gradients_of_float32_to_bfloat16s_precision(family, any_model):
    ids, _ = ragged()
    # A rounded router may send a token elsewhere: with every expert chosen only weights can differ.
    model, grads = any_model(family, **({"num_experts_per_tok": 6} if family == "qwen3_moe" else {})), []
    for low in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            loss = model(ids).float().log_softmax(-1)[..., 3].mean()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.995


def test_fresh_weights_are_reproducible_small_and_do_not_grow_with_depth():
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = DecoderConfig(**shape, num_hidden_layers=8, num_key_value_heads=2, head_dim=8, tie_word_embeddings=False)
    first, again, other = (Decoder(config).init_weights(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    weights = first.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.state_dict().items())
    assert not torch.equal(weights["lm_head.weight"], other.state_dict()["lm_head.weight"])
    assert weights["model.layers.0.self_attn.q_proj.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert weights["model.layers.7.mlp.down_proj.weight"].std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert torch.equal(weights["model.layers.3.self_attn.q_norm.weight"], torch.ones(8))
    ids, _ = ragged(vocab=64)
    assert first(ids).softmax(-1).sub(1 / 64).abs().max() < 0.01  # knows nothing yet


def test_the_norm_of_a_low_precision_model_is_computed_in_float32():
    norm = RMSNorm(64, 1e-6).bfloat16()
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).bfloat16() * 30
    wide = x.float()
    expected = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(norm(x), expected)


def test_bad_calls_say_what_is_wrong(any_model):
    model = any_model()
    ids, _ = ragged()
    with pytest.raises(ValueError, match=r"max_position_embeddings=64"):
        model(torch.zeros(1, 65, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"positions have shape \(1, 3\), ids \(4, 12\)"):
        model(ids, positions=torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ids must be \(B, T\)"):
        model(ids[0])
    with pytest.raises(ValueError, match="no_grad"):
        model(ids, cache=cache_of(model, 4, 32))


def test_a_bad_config_lists_every_problem(make_model):
    good = make_model().config
    with pytest.raises(ValueError, match="hidden_size is 0") as error:
        replace(good, hidden_size=0, rope_theta=-1.0, vocab_size="7")
    assert "rope_theta is -1.0" in str(error.value) and "vocab_size is '7'" in str(error.value)
    for changes, words in (
        ({"num_key_value_heads": 3}, "multiple of"),
        ({"head_dim": 7}, "even"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"num_experts": 4, "num_experts_per_tok": 5, "moe_intermediate_size": 8}, "only 4 experts"),
        ({"qkv_bias": True}, "both on"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(good, **changes)
