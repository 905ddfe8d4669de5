"""Fast models beside the plain ones of `make_model`, with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from taosr1.fast.decoder import use_fast_modules
from taosr1.model.decoder import Decoder


@pytest.fixture(scope="session")
def make_fast_model(make_model) -> Callable[..., Decoder]:
    return lambda *family, **changes: use_fast_modules(make_model(*family, **changes))


@pytest.fixture
def twins(make_model, make_fast_model) -> Callable[..., tuple[Decoder, Decoder]]:
    """twins(...): a plain decoder and a fast one with the same weights."""
    return lambda *family, **changes: (make_model(*family, **changes), make_fast_model(*family, **changes))
