"""Log-probabilities of reply tokens with shared prompts and bounded logits; the plain twin is `model/logprobs.py`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from taosr1.fast.fused_ops import NUMBERS_AT_ONCE
from taosr1.fast.prefix_tree import make_tree
from taosr1.model import logprobs as plain
from taosr1.model.logprobs import as_float32, check_inputs, scatter

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: 220 tokens of Qwen3, and more than any micro-batch of a tiny vocabulary


def completion_logp(
    model, ids: Tensor, mask: Tensor, *, temperature: float = 1.0, with_entropy: bool = False,
    chunk_tok: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`taosr1.model.logprobs.completion_logp` with less work and memory; arguments, results and errors are those.

    What rows begin with alike is computed once (`prefix_tree.py`), and so are equal rows (of a GRPO group that is kept,
    two in three). What is computed once has one mask of LoRA dropout.

    chunk_tok: reply tokens whose logits are in memory at once (None: LOGITS_AT_ONCE numbers). Each chunk's logits are
        discarded and computed again in the backward pass: the same values for one more matrix product.
    """
    check_inputs(ids, mask, temperature)
    if chunk_tok is not None and chunk_tok < 1:
        raise ValueError(f"chunk_tok must be at least 1 or None, got {chunk_tok}")
    if not bool(mask.any()):  # nothing to share, perhaps no row
        return plain.completion_logp(model, ids, mask, temperature=temperature, with_entropy=with_entropy)
    tree, base = make_tree(ids, mask, model.config), int(ids.max()) + 1
    hidden = model.hidden(tree.ids, positions=tree.positions, attend=tree, keep=tree.keep)[0]  # (M, C)
    # Each token after each beginning, once: (n,), and for each of the N masked tokens which of these it is.
    pairs, pair_of = (tree.source * base + ids[mask]).unique(return_inverse=True)
    hidden, tokens = hidden.index_select(0, pairs // base), pairs % base  # (n, C), (n,)
    chunk_tok = chunk_tok or max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(tokens) <= chunk_tok:
        chunks = [_token_logp(model, hidden, tokens, temperature, with_entropy)]
    else:
        chunks = [
            checkpoint(
                *(_token_logp, model, *chunk, temperature, with_entropy),
                use_reentrant=False,
                preserve_rng_state=False,  # the head draws nothing
            )
            for chunk in zip(hidden.split(chunk_tok), tokens.split(chunk_tok))
        ]
    found = [scatter(torch.cat(parts).index_select(0, pair_of), mask) for parts in zip(*chunks)]  # (B, T) each
    return (found[0], found[1]) if with_entropy else found[0]


def _token_logp(model, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool) -> tuple[Tensor, ...]:
    """Log-probs (N,) of `tokens`, and entropies (N,), from hidden states (N, C)."""
    logits = as_float32(model.head(hidden))  # (N, V)
    if temperature != 1.0:
        logits = logits / temperature
    if not logits.requires_grad:
        logp, normaliser = _log_softmax_at(logits, tokens)
    else:
        logp, normaliser = _LogSoftmaxAt.apply(logits, tokens)
    return (logp, _entropy(logits.detach(), normaliser.detach())) if with_entropy else (logp,)


def _entropy(logits: Tensor, normaliser: Tensor) -> Tensor:
    """Of softmax(logits), in nats. Shapes: logits (N, V), normaliser (N,) -> (N,)."""
    mean_logits, rows = [], _rows_at_once(logits)
    for some, normalisers in zip(logits.split(rows), normaliser[:, None].split(rows)):
        probs = (some - normalisers).exp_()
        # A token of probability 0 has logit -inf and adds nothing to the entropy.
        mean_logits.append(some.masked_fill(probs == 0, 0.0).mul_(probs).sum(dim=-1))
    return normaliser - torch.cat(mean_logits)


def _rows_at_once(logits: Tensor) -> int:
    """Rows of (N, V) after which a loop goes on, so that on a CPU temporary tensors stay in the processor's cache."""
    return max(1, NUMBERS_AT_ONCE // logits.shape[1] if logits.device.type == "cpu" else len(logits))


def _log_softmax_at(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax(logits) at `tokens`, (N,), and logsumexp(logits), (N,), without a second (N, V) tensor."""
    normaliser = torch.cat([some.logsumexp(dim=-1) for some in logits.split(_rows_at_once(logits))])
    return logits.gather(-1, tokens[:, None]).squeeze(-1) - normaliser, normaliser


class _LogSoftmaxAt(torch.autograd.Function):
    """`_log_softmax_at` with its gradient, dlogits = dlogp (onehot - softmax): one (N, V) tensor, not three."""

    @staticmethod
    def forward(ctx, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logp, normaliser = _log_softmax_at(logits, tokens)
        ctx.save_for_backward(logits, tokens, normaliser)
        ctx.mark_non_differentiable(normaliser)
        return logp, normaliser

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: None) -> tuple[Tensor, None]:
        logits, tokens, normaliser = ctx.saved_tensors
        logits_grad, rows = torch.empty_like(logits), _rows_at_once(logits)
        chunks = zip(*(x.split(rows) for x in (logits_grad, logits, normaliser[:, None], -grad[:, None])))
        for out, some, normalisers, negative_grad in chunks:
            torch.sub(some, normalisers, out=out).exp_().mul_(negative_grad)
        return logits_grad.scatter_add_(-1, tokens[:, None], grad[:, None]), None
