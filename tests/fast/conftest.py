"""Fast models beside the plain ones of `make_model`, with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from taosr1.fast import static_cache, varlen
from taosr1.fast.decoder import use_fast_modules
from taosr1.model.decoder import Decoder
from tests import attention_twins


@pytest.fixture(autouse=True)
def attention_without_a_gpu(monkeypatch) -> None:
    """Where our attention kernels cannot run, their twins do. test_triton_kernels.py compares the two."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(varlen, "prefix_attention", attention_twins.prefix_attention)
        monkeypatch.setattr(static_cache, "decode_attention", attention_twins.decode_attention)


@pytest.fixture(scope="session")
def make_fast_model(make_model) -> Callable[..., Decoder]:
    return lambda *family, **changes: use_fast_modules(make_model(*family, **changes))


@pytest.fixture
def twins(make_model, make_fast_model) -> Callable[..., tuple[Decoder, Decoder]]:
    """twins(...): a plain decoder and a fast one with the same weights."""
    return lambda *family, **changes: (make_model(*family, **changes), make_fast_model(*family, **changes))
