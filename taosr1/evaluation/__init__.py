"""Metrics with intervals over queries, reports and training curves."""

from taosr1.evaluation.metrics import bootstrap_difference, bootstrap_interval, macro_f1
from taosr1.evaluation.ranking import brier_score, expected_calibration_error, ndcg_by_query
from taosr1.evaluation.summary import Prediction, evaluate_predictions, render_report

__all__ = [
    "Prediction",
    "bootstrap_difference",
    "bootstrap_interval",
    "brier_score",
    "evaluate_predictions",
    "expected_calibration_error",
    "macro_f1",
    "ndcg_by_query",
    "render_report",
]
