"""The front door: a judge with the beta and the temperature it is served with."""

from __future__ import annotations

from taosr1.judge_model import JudgeModel, load_judge

__all__ = ["JudgeModel", "load_judge"]
