"""What only a GPU runs: models with our kernels, recorded decode steps and 8-bit products, against their plain twins.

The kernels one by one: test_triton_kernels.py.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taosr1.fast import cuda_graph
from taosr1.fast.choose_tokens import invert_cdf
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.generate import generate, prefill
from taosr1.fast.kv_cache import ConcatCache
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.quantize import Float8Linear, QuantizedInput, quantize, quantize_to_float8
from taosr1.fast.static_cache import StaticCache
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.sampling.label_probs import label_probabilities as plain_label_probabilities

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LABELS = SimpleNamespace(label_ids=(5, 6, 7, 8))


@pytest.fixture(scope="module")
def plain_model() -> Decoder:
    model = Decoder(DecoderConfig(200, 64, 128, 3, 8, 4, 32, max_position_embeddings=256))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights large enough that the prompt matters to the reply
        for name, parameter in model.named_parameters():
            scale, centre = (0.1, 1.0) if "norm" in name else (0.15, 0.0)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + centre)
    return model.to("cuda", torch.bfloat16)


@pytest.fixture(scope="module")
def model(plain_model) -> Decoder:
    return use_fast_modules(copy.deepcopy(plain_model))


def some_prompts(count: int, shared: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    prefix = torch.randint(200, (shared,), generator=generator).tolist()
    lengths = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [prefix + torch.randint(200, (length,), generator=generator).tolist() for length in lengths]


def test_recorded_steps_give_the_replies_of_steps_that_are_run(model, monkeypatch):
    """Prompts wait, rows end and leave, several caches are decoded at once: the same bits of tokens and log-probs."""
    recorded, record = [], cuda_graph.DecodeStep._record
    monkeypatch.setattr(
        cuda_graph.DecodeStep, "_record", lambda self: recorded.append(len(self.caches)) or record(self)
    )
    settings = {"samples": 4, "max_new_tokens": 40, "stop_ids": (3, 7, 11, 13, 17, 19, 23, 29, 31, 37), "max_rows": 32}
    found = generate(model, some_prompts(30), generator=torch.Generator().manual_seed(0), **settings)
    assert len(recorded) > 3 and max(recorded) > 1 and 0.1 < found.finished.float().mean() < 1

    def run(self):
        self._run()
        self.cache.advance(1)

    monkeypatch.setattr(cuda_graph.DecodeStep, "__call__", run)
    expected = generate(model, some_prompts(30), generator=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.logp, expected.logp)


def test_sampled_log_probs_are_those_of_a_plain_pass_over_the_reply(model, plain_model):
    prompts = some_prompts(6)
    settings = {"samples": 3, "max_new_tokens": 24, "stop_ids": (3,)}
    found = generate(model, prompts, generator=torch.Generator().manual_seed(0), **settings)
    full, differences = copy.deepcopy(plain_model).float(), []
    for row, reply in enumerate(found.replies()):
        prompt = prompts[row // 3]
        with torch.no_grad():
            logp = full(torch.tensor([prompt + reply], device="cuda"))[0].log_softmax(-1)
        expected = torch.stack([logp[len(prompt) - 1 + place, token] for place, token in enumerate(reply)]).cpu()
        differences.append((found.logp[row, : len(reply)] - expected).abs())
    differences = torch.cat(differences)
    assert differences.mean() < 0.03 and differences.max() < 0.4  # bfloat16 against float32


def test_label_probabilities_of_shared_prefixes_equal_the_plain_ones(model, plain_model):
    prompts = some_prompts(50, shared=60) + some_prompts(20)
    found = label_probabilities(model, LABELS, prompts)
    expected = plain_label_probabilities(plain_model, LABELS, prompts)
    assert (found.probs - expected.probs).abs().max() < 0.02
    torch.testing.assert_close(found.label_mass, expected.label_mass, rtol=0.1, atol=1e-3)


def test_drawing_equals_one_running_sum():
    torch.manual_seed(0)
    logits, uniform = torch.randn(500, 5000, device="cuda"), torch.rand(500, device="cuda")
    top = logits.amax(-1, keepdim=True)
    cdf = (logits - top).double().exp().cumsum(-1)
    expected = torch.searchsorted(cdf, uniform[:, None].double() * cdf[:, -1:], right=True)[:, 0]
    with torch.no_grad():
        tokens, _ = invert_cdf(logits, top, uniform)
    assert (tokens == expected).float().mean() > 0.99


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs 8-bit units (Hopper)"
)
def test_8_bit_products_equal_their_emulation_and_a_model_nearly_keeps_its_probabilities(model, plain_model):
    torch.manual_seed(0)
    linear = nn.Linear(64, 96, bias=False).to("cuda", torch.bfloat16)
    x = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layers = [Float8Linear(linear, QuantizedInput(quantize_to_float8), emulate) for emulate in (False, True)]
        found, expected = (layer(x) for layer in layers)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)
    prompts = some_prompts(50, shared=60)
    expected = label_probabilities(model, LABELS, prompts).probs
    got, emulated = (
        label_probabilities(
            use_fast_modules(quantize(copy.deepcopy(plain_model), "float8", emulate=emulate)), LABELS, prompts
        ).probs
        for emulate in (False, True)
    )
    assert 1e-4 < (got - expected).abs().mean() < 0.1
    assert (got - emulated).abs().mean() < (got - expected).abs().mean()


def test_concatenated_caches_record_and_replay(model):
    """A recorded step reads its caches where they are now, not where they were."""
    with torch.no_grad():
        caches = [
            StaticCache.of(prefill(model, some_prompts(count))[1], torch.arange(count, device="cuda"), 8)
            for count in (2, 3)
        ]
        assert ConcatCache(caches).lengths.shape == (5,)
        last, tokens = torch.zeros(5, dtype=torch.int64, device="cuda"), []
        active = torch.ones(5, dtype=torch.bool, device="cuda")
        step = cuda_graph.DecodeStep(model, caches, last, active, lambda logits, active: (logits.argmax(-1), active))
        for _ in range(6):
            step()
            tokens.append(last.tolist())
        assert step.graph is not None and caches[0].length == 6
        assert caches[1].lengths.tolist() == (caches[1].start + 6).tolist()
    assert len({tuple(step_tokens) for step_tokens in tokens}) > 1
