"""The report to look at: `python -m taosr1.evaluation.report RUN|SCORES ... --out report.html` (see `__main__.py`)."""

from __future__ import annotations

import warnings

from taosr1.evaluation import summary

_MOVED = ("Prediction", "evaluate_predictions", "render_report")  # until version 0.2 they were here


def __getattr__(name: str):
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"{__name__}.{name} is now taosr1.evaluation.{name}", DeprecationWarning, stacklevel=2)
    return getattr(summary, name)
