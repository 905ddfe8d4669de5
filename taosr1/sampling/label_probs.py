"""One prefill per product: the probabilities of the four labels at the first generated position (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.model.config import DecoderConfig
from taosr1.runtime.progress import report
from taosr1.sampling.batching import batch_by_length, pad_right
from taosr1.sampling.choose_token import choose_token
from taosr1.task.grades import GRADES


@dataclass(frozen=True)
class LabelProbs:
    """What one prefill says about each prompt; all on the CPU, in the order of the prompts.

    Shapes: probs (P, 4) float32, column g - 1 is grade g and rows sum to 1; label_mass (P,), the full-vocabulary
    probability that the first token is any label at all. A low mass means that the model is not answering with a
    label, whatever `probs` says. first_tokens (P, G) int64, the first tokens of G replies if they were asked for.
    """

    probs: Tensor
    label_mass: Tensor
    first_tokens: Tensor | None = None

    @classmethod
    def empty(cls, prompts: int, uniform: Tensor | None) -> LabelProbs:
        """Room for so many prompts, to be filled in."""
        drawn = None if uniform is None else torch.empty(uniform.shape, dtype=torch.int64)
        return cls(torch.empty(prompts, len(GRADES)), torch.empty(prompts), drawn)

    def checked(self) -> LabelProbs:
        """The same. Raises: ValueError naming the first prompt whose numbers are not finite."""
        bad = ~(self.probs.isfinite().all(-1) & self.label_mass.isfinite())
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"prompt {row}: label probabilities are not finite; the weights hold NaN or --dtype overflows"
            )
        return self


@torch.no_grad()
def label_probabilities(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens_per_batch: int = 16384,
    uniform: Tensor | None = None,
    temperature: float = 1.0,
) -> LabelProbs:
    """Score each prompt with one forward pass and no decoding: P(grade) = softmax over the four label logits.

    With `uniform` (P, G), numbers in [0, 1), the same pass also draws the first token of G replies to each prompt at
    `temperature`: how difficult a prompt is, without decoding. Passed to `generate` as `first_tokens`, they give
    replies with exactly the distribution that `generate` alone gives.

    Shapes: prompts is P lists of token ids, each ending where the reply would begin.
    Returns: LabelProbs with P rows in input order; no prompts give (0, 4) and (0,).
    Raises: ValueError for a prompt that is empty or longer than the model's positions, a batch budget below 1, or
        probabilities that are not finite.
    Source: arXiv 2508.12365, section 5 (deployment). The softmax is taken in float32 whatever the weights' type.
    """
    check_prompts(prompts, model.config, max_tokens_per_batch)
    device = next(model.parameters()).device
    found, done = LabelProbs.empty(len(prompts), uniform), 0
    for batch in batch_by_length([len(prompt) for prompt in prompts], max_tokens_per_batch):
        rows = torch.tensor(batch)
        hidden = model.hidden(pad_right([prompts[row] for row in batch]).to(device))  # (b, T, C)
        last = torch.tensor([len(prompts[row]) - 1 for row in batch], device=device)
        logits = model.head(hidden[torch.arange(len(batch), device=device), last]).float()  # (b, V)
        probs, label_mass = read_labels(logits, tokenizer.label_ids)
        found.probs[rows], found.label_mass[rows] = probs.cpu(), label_mass.cpu()
        if uniform is not None:
            samples = uniform.shape[1]
            repeated, draws = logits.repeat_interleave(samples, dim=0), uniform[rows].flatten().to(device)
            tokens, _ = choose_token(repeated, draws, temperature=temperature)
            found.first_tokens[rows] = tokens.view(len(batch), samples).cpu()
        report("pairs scored", done := done + len(batch), len(prompts))
    return found.checked()


def read_labels(logits: Tensor, label_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """P(grade) and label mass from the logits of the first token. Shapes: (b, V) -> (b, 4), (b,)."""
    label_logits = logits[:, torch.tensor(label_ids, device=logits.device)]  # (b, 4)
    mass = (label_logits.logsumexp(-1) - logits.logsumexp(-1)).exp().clamp(max=1)
    return label_logits.softmax(-1), mass


def check_prompts(prompts: Sequence[Sequence[int]], config: DecoderConfig, max_tokens_per_batch: int) -> None:
    """Raises: ValueError for a prompt that is empty or too long for the model, or a batch budget below 1."""
    if max_tokens_per_batch < 1:
        raise ValueError(f"max_tokens_per_batch is {max_tokens_per_batch}, expected at least 1")
    limit = config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limit:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens, expected 1 to {limit} (max_position_embeddings)")
