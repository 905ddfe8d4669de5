"""Deployment: one prefill per product, calibrated label probabilities, ranking tiers."""

from taosr1.serving.calibration import apply_temperature, fit_temperature
from taosr1.serving.tiering import cumulative_tier, fit_beta, threshold_tier

__all__ = ["apply_temperature", "cumulative_tier", "fit_beta", "fit_temperature", "threshold_tier"]
