"""What only a GPU runs: whole models with our kernels (one by one: test_kernels.py), recorded decode steps and 8-bit products, each against its plain twin."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import cuda_graph as decode_step
from taosr1.fast import generate as sampler
from taosr1.fast.generate import generate, invert_cdf
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.onednn_linear import Linear, plain_paths
from taosr1.fast.quantize import Float8Linear, Rounding, quantize, quantize_to_float8
from taosr1.fast.shared_prefix_cache import ConcatCache
from taosr1.fast.static_cache import StaticCache
from taosr1.model.decoder import Decoder, DecoderConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
LABELS = SimpleNamespace(label_ids=(5, 6, 7, 8))


@pytest.fixture(scope="module")
def model() -> Decoder:
    config = DecoderConfig(200, 64, 128, 3, 8, 4, 32, max_position_embeddings=256)
    model = Decoder(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # weights large enough that what was read matters to what is written
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.15 if "norm" not in name else 0.1) + (1.0 if "norm" in name else 0.0))
    return model.to("cuda", torch.bfloat16)


def some_prompts(count: int, shared: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(count)
    head = torch.randint(200, (shared,), generator=generator).tolist()
    return [head + torch.randint(200, (int(n),), generator=generator).tolist() for n in torch.randint(1, 40, (count,), generator=generator)]


def test_recorded_steps_write_the_replies_of_steps_as_they_stand(model, monkeypatch):
    """Prompts wait, rows end and leave, sets of rows stand side by side: the same tokens and log-probs, bit for bit."""
    recorded, record = [], decode_step.DecodeStep._record
    monkeypatch.setattr(decode_step.DecodeStep, "_record", lambda self: recorded.append(len(self.caches)) or record(self))
    settings = {"samples": 4, "max_new_tokens": 40, "stop_ids": (3, 7, 11, 13, 17, 19, 23, 29, 31, 37), "max_rows": 32}
    found = generate(model, some_prompts(30), generator=torch.Generator().manual_seed(0), **settings)
    assert len(recorded) > 3 and max(recorded) > 1 and 0.1 < found.finished.float().mean() < 1

    def as_it_stands(self):
        self._run()
        self.cache.advance(1)

    monkeypatch.setattr(decode_step.DecodeStep, "__call__", as_it_stands)
    expected = generate(model, some_prompts(30), generator=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(found.tokens, expected.tokens) and torch.equal(found.logp, expected.logp)


def test_sampled_log_probs_are_those_of_a_plain_pass_over_the_reply(model):
    prompts = some_prompts(6)
    found = generate(model, prompts, samples=3, max_new_tokens=24, stop_ids=(3,), generator=torch.Generator().manual_seed(0))
    full = Decoder(model.config).to("cuda")
    full.load_state_dict(model.state_dict())
    worst = []
    for row, reply in enumerate(found.replies()):
        prompt = prompts[row // 3]
        with torch.no_grad(), plain_paths():
            logp = full(torch.tensor([prompt + reply], device="cuda"))[0].log_softmax(-1)
        expected = torch.stack([logp[len(prompt) - 1 + place, token] for place, token in enumerate(reply)]).cpu()
        worst.append((found.logp[row, : len(reply)] - expected).abs())
    worst = torch.cat(worst)
    assert worst.mean() < 0.03 and worst.max() < 0.4, (worst.mean(), worst.max())  # bfloat16 against float32


def test_label_probabilities_of_shared_prefixes_equal_the_plain_path(model):
    prompts = some_prompts(50, shared=60) + some_prompts(20)
    found = label_probabilities(model, LABELS, prompts)
    with plain_paths():
        expected = label_probabilities(model, LABELS, prompts)
    assert (found.probs - expected.probs).abs().max() < 0.02
    torch.testing.assert_close(found.label_mass, expected.label_mass, rtol=0.1, atol=1e-3)


def test_drawing_equals_one_running_sum():
    torch.manual_seed(0)
    logits, uniform = torch.randn(500, 5000, device="cuda"), torch.rand(500, device="cuda")
    top = logits.amax(-1, keepdim=True)
    cdf = (logits - top).double().exp().cumsum(-1)
    expected = torch.searchsorted(cdf, uniform[:, None].double() * cdf[:, -1:], right=True)[:, 0]
    assert (invert_cdf(logits, top, uniform)[0] == expected).float().mean() > 0.99


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0), reason="needs 8-bit units (Hopper)")
def test_8_bit_products_equal_their_plain_twin_and_a_model_keeps_its_probabilities(model):
    torch.manual_seed(0)
    linear = Linear(64, 96, bias=False).to("cuda", torch.bfloat16)
    layer, x = Float8Linear(linear, Rounding(quantize_to_float8)), torch.randn(300, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        found = layer(x)
        with plain_paths():
            expected = layer(x)
    torch.testing.assert_close(found.float(), expected.float(), rtol=0.02, atol=0.02)
    prompts = some_prompts(50, shared=60)
    expected = label_probabilities(model, LABELS, prompts).probs
    rounded = Decoder(model.config).to("cuda", torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    got = label_probabilities(quantize(rounded, "float8"), LABELS, prompts).probs
    assert 1e-4 < (got - expected).abs().mean() < 0.1
    with plain_paths():
        emulated = label_probabilities(rounded, LABELS, prompts).probs
    assert (got - emulated).abs().mean() < (got - expected).abs().mean()


def test_side_by_side_rows_record_and_replay(model):
    """A recorded step reads where its caches are now, not where they were."""
    with torch.no_grad():
        caches = [StaticCache.of(sampler.prefill(model, some_prompts(count))[1], torch.arange(count, device="cuda"), 8) for count in (2, 3)]
        assert ConcatCache(caches).lengths.shape == (5,)
        last, going, seen = torch.zeros(5, dtype=torch.int64, device="cuda"), torch.ones(5, dtype=torch.bool, device="cuda"), []
        step = decode_step.DecodeStep(model, caches, last, going, lambda logits, going: (logits.argmax(-1), going))
        for _ in range(6):
            step()
            seen.append(last.tolist())
        assert step.graph is not None and caches[0].grown == 6 and caches[1].lengths.tolist() == (caches[1].start + 6).tolist()
    assert len({tuple(tokens) for tokens in seen}) > 1
