"""scikit-learn and matplotlib for the tests that need them."""

from __future__ import annotations

import pytest


@pytest.fixture
def sklearn_metrics():
    reason = "needs scikit-learn: pip install -c constraints.txt -e '.[dev]'"
    return pytest.importorskip("sklearn.metrics", reason=reason)


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -c constraints.txt -e '.[plot]'")
