"""Replies from the decoder: sampling with a KV cache, label probabilities from one prefill, pass@N."""

from taosr1.sampling.generate import generate
from taosr1.sampling.label_probs import LabelProbs, label_probabilities
from taosr1.sampling.passn import pass_at_n
from taosr1.sampling.rollouts import Rollouts

__all__ = ["LabelProbs", "Rollouts", "generate", "label_probabilities", "pass_at_n"]
