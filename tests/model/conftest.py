"""Hugging Face's transformers, for the tests that compare with it."""

from __future__ import annotations

import pytest


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the parity tests need transformers (pip install .[dev])")
