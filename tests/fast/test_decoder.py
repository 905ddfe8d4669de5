"""The fast decoder against the plain one, and what it can do beyond it: keep some columns only."""

from __future__ import annotations

import copy

import pytest
import torch

from taosr1.fast.decoder import FastDecoder, use_fast_modules
from taosr1.fast.kv_cache import FastKVCache
from taosr1.model.kv_cache import KVCache

LENGTHS = (7, 1, 12, 4)


def ragged(lengths=LENGTHS, *, vocab: int = 97, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of these lengths, padded on the right with random ids: padding content must not matter."""
    ids = torch.randint(vocab, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids, torch.tensor(lengths)


@pytest.mark.parametrize("route", ["causal", "cache", "second call of a cache", "attend"])
def test_keeping_some_columns_gives_the_same_hidden_states_and_gradients(route, family, make_model, assert_close):
    """The last layer computes only what is kept; how the mask comes about must not matter."""
    model, (ids, _) = use_fast_modules(make_model(family)), ragged()
    keep = torch.tensor([[6, 2], [0, 0], [11, 10], [3, 0]])
    before = ids[:, :3] if route == "second call of a cache" else None

    def hidden(**given) -> torch.Tensor:
        if "cache" in route:
            given["cache"] = FastKVCache(model.config, 4, 16)
        if before is not None:
            model.hidden(before, cache=given["cache"])
            given["cache"].advance(3)
        if route == "attend":
            causal = (torch.arange(12)[:, None] >= torch.arange(12)).expand(4, 1, 12, 12) & (torch.arange(12) != 1)
            given["attend"] = causal | torch.eye(12, dtype=torch.bool)
        return model.hidden(ids, **given)

    results = []
    for kept in (False, True):
        model.zero_grad()
        with torch.set_grad_enabled("cache" not in route):
            found = hidden(keep=keep) if kept else hidden()[torch.arange(4)[:, None], keep]
        results.append([found.detach()])
        if found.requires_grad:
            found.square().sum().backward()
            results[-1] += [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for whole, kept in zip(*results, strict=True):
        assert_close(kept / whole.abs().max(), whole / whole.abs().max())


def test_the_fast_decoder_is_the_plain_one(family, make_model, assert_close):
    """Logits and gradients, with and without a cache, from the same parameter objects."""
    plain, (ids, _) = make_model(family), ragged()
    fast = use_fast_modules(copy.deepcopy(plain))
    grads = []
    for model in (plain, fast):
        logits = model(ids)
        logits.log_softmax(-1)[..., 3].mean().backward()
        grads.append([logits.detach(), *(p.grad for p in model.parameters())])
    for ours, expected in zip(*grads, strict=True):
        assert_close(ours, expected)
    with torch.no_grad():
        assert_close(fast(ids, cache=FastKVCache(fast.config, 4, 16)), plain(ids, cache=KVCache(plain.config, 4, 16)))


def test_swapping_keeps_every_parameter_and_its_name(family, make_model):
    model = make_model(family)
    before = dict(model.named_parameters())
    after = dict(use_fast_modules(model).named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    assert type(use_fast_modules(model)) is FastDecoder  # a second time changes nothing


def test_the_last_layer_runs_at_the_columns_that_are_kept(make_model):
    model, tokens = use_fast_modules(make_model()), []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, given: tokens.append(given[0].shape[:2].numel()))
    with torch.no_grad():
        model.hidden(ragged()[0], keep=torch.tensor([[6], [0], [11], [3]]))
    assert tokens == [48, 4]


def test_rotary_tables_follow_dtype_length_and_inference_mode(make_model, assert_close):
    """A model cast to bfloat16 and back, or first used under inference mode, must not keep spoiled tables."""
    model, reference = (use_fast_modules(make_model(max_position_embeddings=600)) for _ in range(2))
    ids, _ = ragged((500,))
    with torch.inference_mode():
        model(ids[:, :5])
    model.bfloat16()
    model(ids[:, :5])
    model.load_state_dict(reference.state_dict())
    model.float().load_state_dict(reference.state_dict())
    assert_close(model(ids), reference(ids))
    model(ids[:, :5]).sum().backward()
