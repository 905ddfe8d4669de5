"""The decoder against transformers, family by family: logits, gradients, greedy replies, routing. Random weights."""

from __future__ import annotations

import pytest
import torch

from taosr1.engine import PLAIN
from taosr1.fast import FAST
from taosr1.model.io.weights import load_decoder
from taosr1.model.kv_cache import KVCache

transformers = pytest.importorskip("transformers", reason="the parity tests need transformers (pip install .[dev])")

SHAPE = {
    **{"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5},
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
HEAD_DIM = {"head_dim": 10}  # not hidden_size / heads: it must be read, not derived
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 0.5,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CASES = {
    "llama": ("Llama", ROPE | HEAD_DIM),
    "llama3": ("Llama", HEAD_DIM | {"rope_parameters": LLAMA3 | {"rope_theta": 100.0}}),
    "mistral": ("Mistral", ROPE | HEAD_DIM | {"sliding_window": 5}),
    "mistral-full": ("Mistral", ROPE | {"sliding_window": None}),
    "qwen2": ("Qwen2", ROPE),
    "qwen3": ("Qwen3", ROPE | HEAD_DIM),
    "qwen3_moe": ("Qwen3Moe", ROPE | HEAD_DIM | EXPERTS | {"norm_topk_prob": True}),
    "qwen3_moe-mixed": (
        "Qwen3Moe",
        ROPE | EXPERTS | {"norm_topk_prob": False, "mlp_only_layers": [0], "num_hidden_layers": 3},
    ),
}
LENGTHS = (9, 1, 14, 4)


@pytest.fixture(params=CASES)
def case(request) -> str:
    return request.param


@pytest.fixture
def make_pair(tmp_path, scramble):
    """(ours, theirs): the same random weights, ours read from the folder that transformers wrote."""

    def make(case: str, *, tied: bool = True, dtype: torch.dtype = torch.float32, change=None, **changes):
        name, options = CASES[case]
        config = getattr(transformers, f"{name}Config")(**(SHAPE | options | changes), tie_word_embeddings=tied)
        theirs = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        scramble(theirs, 3)
        if change is not None:
            change(theirs)
        theirs = theirs.to(dtype)
        theirs.save_pretrained(tmp_path)
        return load_decoder(tmp_path, dtype=dtype), theirs

    return make


def ragged() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(97, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    return ids, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def left_padded(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.roll(int((~real).sum())) for row, real in zip(ids, mask)])


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_transformers_padded_on_either_side(case, tied, make_pair, assert_close):
    ours, theirs = make_pair(case, tied=tied)
    ids, mask = ragged()
    logits = ours(ids)[mask]
    for row, real in zip(ids, mask):
        assert_close(ours(row[None, real]), theirs(row[None, real]).logits)
    assert_close(logits, theirs(ids, attention_mask=mask.long()).logits[mask])
    on_the_left = theirs(left_padded(ids, mask), attention_mask=left_padded(mask.long(), mask)).logits
    assert_close(logits, on_the_left[left_padded(mask, mask)])


@torch.no_grad()
def test_cached_and_chunked_logits_equal_those_of_transformers(case, make_pair, assert_close):
    ours, theirs = make_pair(case)
    ids = torch.randint(97, (3, 24), generator=torch.Generator().manual_seed(2))
    expected = theirs(ids, use_cache=False).logits
    for cuts in ((24,), (11, 13), (1,) * 24, (7, 1, 1, 15)):
        cache, parts = KVCache(ours.config, 3, 24), []
        for part in ids.split(cuts, dim=1):
            parts.append(ours(part, cache=cache))
            cache.lengths += part.shape[1]
        assert_close(torch.cat(parts, 1), expected)


@torch.no_grad()
def test_bfloat16_logits_are_as_close_to_float32_as_those_of_transformers(case, make_pair):
    """Both round at every step, at slightly different places: neither may be further from the exact logits."""
    everywhere = (
        {"num_experts_per_tok": 6} if "moe" in case else {}
    )  # a rounded router may choose others; this is about arithmetic
    ours, theirs = make_pair(case, dtype=torch.bfloat16, **everywhere)
    ids, mask = ragged()
    exact = theirs.float()(ids, attention_mask=mask.long()).logits[mask]
    rounded = theirs.bfloat16()(ids, attention_mask=mask.long()).logits[mask].float()
    error, their_error = ((logits - exact).square().mean().sqrt() for logits in (ours(ids)[mask].float(), rounded))
    assert error <= 1.2 * their_error
    assert error < 0.03 * exact.std()


def test_gradients_equal_those_of_transformers(case, make_pair):
    ours, theirs = make_pair(case, tied=case != "llama")
    ids, mask = ragged()
    for logits in (ours(ids), theirs(ids, attention_mask=mask.long()).logits):
        (logits.log_softmax(-1)[..., 5] * mask).sum().backward()
    expected = hf_grads(theirs)
    for name, parameter in ours.named_parameters():
        grad = expected.pop(name)
        assert (parameter.grad - grad).norm() <= 1e-4 * grad.norm(), name
    assert not expected


def hf_grads(theirs) -> dict[str, torch.Tensor]:
    """transformers 5 keeps gate and up of all experts in one matrix; ours are two."""
    grads = {}
    for name, parameter in theirs.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            gate, up = parameter.grad.chunk(2, dim=1)
            grads |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            grads[name] = parameter.grad
    return grads


@torch.no_grad()
def test_greedy_replies_equal_those_of_transformers_over_200_tokens(case, make_pair):
    ours, theirs = make_pair(case)
    ids, mask = ragged()
    prompts = [row[real].tolist() for row, real in zip(ids, mask)]
    options = {"max_new_tokens": 200, "do_sample": False, "pad_token_id": 0}
    settings = {"max_new_tokens": 200, "temperature": 0.0}
    replies = PLAIN.generate(ours, prompts, **settings, stop_ids=[97]).replies()  # an id outside of the vocabulary
    for prompt, reply in zip(prompts, replies):
        assert theirs.generate(torch.tensor([prompt]), **options, eos_token_id=97)[0, len(prompt) :].tolist() == reply
        assert len(reply) == 200
    stop = replies[2][60]
    padded, real = left_padded(ids, mask), left_padded(mask.long(), mask)
    together = theirs.generate(padded, attention_mask=real, **options, eos_token_id=stop)
    for engine in (PLAIN, FAST):
        stopped = engine.generate(engine.prepare(ours), prompts, **settings, stop_ids=[stop]).replies()
        assert len(stopped[2]) <= 61
        assert all(row[: len(reply)].tolist() == reply for row, reply in zip(together[:, ids.shape[1] :], stopped))
    assert FAST.generate(ours, prompts, **settings).replies() == replies


@torch.no_grad()
@pytest.mark.parametrize("kind", ["random", "all tied"])
def test_routing_equals_that_of_transformers(kind, make_pair, assert_close):
    """Where all are tied every token goes to the same two experts and four stay empty."""

    def change(theirs) -> None:
        for layer in theirs.model.layers:
            if kind == "all tied":
                layer.mlp.gate.weight[:] = 0.0

    ours, theirs = make_pair("qwen3_moe", change=change)
    ids, _ = ragged()
    chosen, expected = [], []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, __, out: expected.append((out[1], out[2])))
        for layer in theirs.model.layers
    ]
    hooks += [
        layer.mlp.register_forward_hook(lambda mlp, x, _: chosen.append(mlp.route(x[0].flatten(0, 1))))
        for layer in ours.model.layers
    ]
    assert_close(ours(ids), theirs(ids).logits)
    for hook in hooks:
        hook.remove()
    for (weights, experts), (their_weights, their_experts) in zip(chosen, expected, strict=True):
        assert torch.equal(experts, their_experts)
        assert_close(weights, their_weights)
    counts = torch.stack([experts for _, experts in chosen]).flatten().bincount(minlength=6)
    assert counts.count_nonzero() == 2 if kind == "all tied" else counts.count_nonzero() > 2


@torch.no_grad()
def test_of_tied_experts_the_same_ones_win_as_in_transformers(make_pair, assert_close):
    """Whole numbers, whose sums are exact: with others some CPUs' products break a tie by a rounding error."""

    def change(theirs) -> None:
        for layer in theirs.model.layers:
            router = layer.mlp.gate.weight
            router.copy_((router * 50).round())
            router[1:5] = router[0]

    ours, theirs = make_pair("qwen3_moe", change=change)
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(6, dtype=torch.int64)
    for our_layer, their_layer in zip(ours.model.layers, theirs.model.layers):
        router = our_layer.mlp.gate.weight
        assert torch.equal(router, router.round()) and router.any()
        tokens = torch.randint(-3, 4, (60, router.shape[1]), generator=generator).float()
        weights, experts = our_layer.mlp.route(tokens)
        _, their_weights, their_experts = their_layer.mlp.gate(tokens)
        assert torch.equal(experts, their_experts)
        assert_close(weights, their_weights)
        counts += experts.flatten().bincount(minlength=6)
    assert counts[5] and 1 <= counts[:5].count_nonzero() < 5  # ties were met, and went to the same ones of the five
