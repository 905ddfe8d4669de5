"""What many folders share: tiny decoders of all families, tiny judges, the one tolerance, and the mark `dev`.

Without a GPU, Triton interprets our kernels. It reads that variable when it is first imported, so it is set here,
before any test is imported.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import ModuleType

import pytest
import torch

from taosr1.judge_model import JudgeModel
from taosr1.model.config import Llama3Scaling
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig
from tests.browsers import BROWSERS, CHROMIUM_FLAGS, chromium_path

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark with `dev` every test that is skipped where a package of the [dev] extra is missing; CI runs those apart."""
    for item in items:
        fixtures = [definition.func for found in item._fixtureinfo.name2fixturedefs.values() for definition in found]
        functions = [inspect.unwrap(function) for function in (item.function, *fixtures)]
        skips = any("importorskip" in function.__code__.co_names for function in functions)
        if skips or _module_needs_dev(item.module):
            item.add_marker(pytest.mark.dev)


@lru_cache
def _module_needs_dev(module: ModuleType) -> bool:
    return bool(re.search(r"^(\w+ = )?pytest\.importorskip", inspect.getsource(module), flags=re.M))


FAMILIES = {
    "llama": {"qk_norm": False},
    # A context of 16 stretched by 4: of the rotations of a head of 8, one is fast, one slow, and two are between.
    "llama3": {"qk_norm": False, "rope_scaling": Llama3Scaling(4.0, 0.5, 2.0, 16), "rope_theta": 100.0},
    "mistral": {"qk_norm": False, "sliding_window": 5},
    "qwen2": {"qkv_bias": True, "qk_norm": False},
    "qwen3": {"qk_norm": True},
    "qwen3_moe": {"qk_norm": True, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Decoder]:
    """A tiny decoder with every parameter (norms and biases too) drawn at random, so that none can be forgotten."""

    def make(family: str = "qwen3", *, seed: int = 0, **changes) -> Decoder:
        shape = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
        model = Decoder(DecoderConfig(**{**shape, **FAMILIES[family], **changes}))
        _scramble(model, seed)
        return model

    return make


@pytest.fixture(scope="session")
def scramble() -> Callable[..., None]:
    """Draw every parameter of a module at random; matrices are large enough that attention is far from uniform."""
    return _scramble


def _scramble(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            centre = 1.5 if "norm" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + centre)


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Equal up to the rounding of float32 sums taken in another order."""

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    return check


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    cot = "4\nQuery: travel mug; material not plastic\nItem: travel mug; material steel\nDecision: 4-Excellent"
    texts = [cot, cot.replace("4-Excellent", "2-Mismatch"), "Steel travel mug 500 ml, women's, non-slip"] * 20
    return train_tokenizer(texts, 400, tmp_path_factory.mktemp("tokenizer"))


SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    texts = [f" {row.query}\n {row.title}\n{row.cot}" for row in read_pool("reasoned", 100)]
    return train_tokenizer(texts, 360, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make_judge(tiny_tokenizer) -> Callable[..., JudgeModel]:
    """make_judge(order, seed=0, **shape): fresh weights every time, so that tests may train them."""

    def make(order: str = "post-cot", seed: int = 0, **shape) -> JudgeModel:
        config = DecoderConfig(tiny_tokenizer.vocab_size, **{**SHAPE, "max_position_embeddings": 160, **shape})
        model = Decoder(config).init_weights(torch.Generator().manual_seed(seed))
        return JudgeModel(model, tiny_tokenizer, PromptConfig(order, "brief", ("title",)))

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A real Chromium, that of the system.

    Of a module: while it is open, playwright's event loop runs in this thread, and no test could start one of its own.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install .[dev])")
    path = chromium_path()
    if path is None:
        pytest.skip(f"no browser found, expected one of {', '.join(BROWSERS)} (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        yield found
        found.close()
