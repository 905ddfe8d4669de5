"""One prefill per product: the probabilities of the four labels at the first generated position (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

# The head runs over the whole vocabulary to measure label mass; this bounds its (rows, V) float32 logits to 64 MiB.
_MAX_LOGITS = 1 << 24


@dataclass(frozen=True)
class LabelProbs:
    """What one prefill says about each prompt; both on the CPU, float32, in the order of the prompts.

    Shapes: probs (P, 4), column g - 1 is grade g and rows sum to 1; label_mass (P,), the full-vocabulary probability
    that the first token is any label at all. A low mass means that the model is not answering with a label, whatever
    `probs` says.
    """

    probs: Tensor
    label_mass: Tensor


def batch_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yields row indices grouped so that rows x longest row <= max_tokens, longest first; a longer row goes alone."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # stable: the split depends on lengths only
        if rows and (len(rows) + 1) * lengths[rows[0]] > max_tokens:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


@torch.no_grad()
def label_probabilities(
    model, tokenizer, prompts: list[list[int]], *, max_tokens_per_batch: int = 16384, progress: bool = False
) -> LabelProbs:
    """Scores each prompt with one forward pass and no decoding: P(grade) = softmax over the four label logits.

    Shapes: prompts is P lists of token ids, each ending where the reply would begin.
    Returns: LabelProbs with P rows in input order; no prompts give (0, 4) and (0,).
    Raises: ValueError for a prompt that is empty or longer than the model's positions, a batch budget below 1, or
    probabilities that are not finite.
    Source: arXiv 2508.12365, section 5 (deployment). The softmax is taken in float32 whatever the weights' type.
    """
    if max_tokens_per_batch < 1:
        raise ValueError(f"max_tokens_per_batch is {max_tokens_per_batch}, expected at least 1")
    limit = model.config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limit:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens, expected 1 to {limit} (max_position_embeddings)")
    device = next(model.parameters()).device
    labels = torch.tensor(tokenizer.label_ids, device=device)
    probs = torch.empty(len(prompts), len(tokenizer.label_ids))
    label_mass = torch.empty(len(prompts))

    with tqdm(total=len(prompts), desc="score", unit="pair", disable=not progress) as bar:
        for rows in batch_by_length([len(prompt) for prompt in prompts], max_tokens_per_batch):
            hidden = _last_hidden(model, [prompts[row] for row in rows], device)  # (B, C)
            rows_per_chunk = max(1, _MAX_LOGITS // model.config.vocab_size)
            for index, chunk in zip(torch.tensor(rows).split(rows_per_chunk), hidden.split(rows_per_chunk)):
                logits = model.head(chunk).float()  # (b, V)
                label_logits = logits[:, labels]  # (b, 4)
                probs[index] = label_logits.softmax(-1).cpu()
                label_mass[index] = (label_logits.logsumexp(-1) - logits.logsumexp(-1)).exp().clamp(max=1).cpu()
            bar.update(len(rows))

    finite = torch.isfinite(probs).all(-1) & torch.isfinite(label_mass)
    if not bool(finite.all()):
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"prompt {row}: label probabilities are not finite; the weights hold NaN or --dtype overflows")
    return LabelProbs(probs, label_mass)


def _last_hidden(model, prompts: list[list[int]], device: torch.device) -> Tensor:
    """The final-norm hidden state (B, C) at each prompt's last real position."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    # Right padding under causal attention: no real position can see a pad, so any id will do; 0 always exists.
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    hidden = model.hidden(ids.to(device))  # (B, T, C)
    return hidden[torch.arange(len(prompts), device=device), (lengths - 1).to(device)]
