"""How the decoder improves: losses, rewards, what is trained on, and one loop for all three stages.

This imports the mathematics alone; the loop and the rollouts, which need a judge, are imported by their own modules.
"""

from taosr1.learning.losses import dpo_loss, group_advantages, grpo_loss, ordinal_target, sft_loss
from taosr1.model.logprobs import completion_logp, sequence_logp

__all__ = [
    "completion_logp", "dpo_loss", "group_advantages", "grpo_loss", "ordinal_target", "sequence_logp", "sft_loss"
]  # fmt: skip
