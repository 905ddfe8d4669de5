"""One prefill per product: the probabilities of the four labels at the first generated position (paper, section 5)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from taosr1.fast.generate import choose_tokens
from taosr1.fast.onednn_linear import is_plain
from taosr1.fast.prefix_groups import PrefixGroup, batch_by_length, group_by_prefix, pad_right, tokens_at_once
from taosr1.fast.shared_prefix_cache import SCORES_AT_ONCE, SharedPrefixCache
from taosr1.fast.varlen import VarlenPrefixes, VarlenRows, VarlenSuffixes, send, use_varlen
from taosr1.model.decoder import DecoderConfig
from taosr1.model.kv_cache import KVCache

# The head runs over the whole vocabulary to measure label mass; this bounds its (rows, V) float32 logits to 64 MiB.
LOGITS_AT_ONCE = 1 << 24
# On a GPU so many prompts are looked through for what they share while it computes those before. At first it has nothing to do: fewer.
PROMPTS_AT_ONCE, FIRST_PROMPTS = 512, 128


@dataclass(frozen=True)
class LabelProbs:
    """What one prefill says about each prompt; both on the CPU, float32, in the order of the prompts.

    Shapes: probs (P, 4), column g - 1 is grade g and rows sum to 1; label_mass (P,), the full-vocabulary probability
    that the first token is any label at all. A low mass means that the model is not answering with a label, whatever
    `probs` says.
    """

    probs: Tensor
    label_mass: Tensor
    drawn: Tensor | None = None  # (P, G) int64, the first tokens of G replies, where they were asked for


@torch.no_grad()
def label_probabilities(
    model,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens_per_batch: int = 16384,
    uniform: Tensor | None = None,
    temperature: float = 1.0,
    progress: bool = False,
) -> LabelProbs:
    """Scores each prompt with one forward pass and no decoding: P(grade) = softmax over the four label logits.

    With `uniform` (P, G), numbers in [0, 1), the same pass also draws the first token of G replies to each prompt, at `temperature`: how
    hard a prompt is, without decoding. Handed to `generate` as `first_tokens`, they give replies with exactly the distribution that
    `generate` alone gives: the first token is drawn from the same logits either way. Drawing it anew for kept groups would not.

    Shapes: prompts is P lists of token ids, each ending where the reply would begin.
    Returns: LabelProbs with P rows in input order; no prompts give (0, 4) and (0,).
    Raises: ValueError for a prompt that is empty or longer than the model's positions, a batch budget below 1, or
    probabilities that are not finite.
    Source: arXiv 2508.12365, section 5 (deployment). The softmax is taken in float32 whatever the weights' type.
    """
    labels = torch.tensor(tokenizer.label_ids, device=next(model.parameters()).device)
    order, parts = [], []
    with tqdm(total=len(prompts), desc="score", unit="pair", disable=not progress) as bar:
        for index, logits in first_logits(model, prompts, max_tokens_per_batch):  # (b,), (b, V)
            label_logits = logits[:, labels]  # (b, 4)
            mass = (label_logits.logsumexp(-1) - logits.logsumexp(-1)).exp().clamp(max=1)
            drawn = None
            if uniform is not None:
                draws = uniform[index].flatten().to(logits.device)
                row_of = torch.arange(len(index), device=logits.device).repeat_interleave(uniform.shape[1])
                drawn = choose_tokens(logits, draws, temperature=temperature, top_k=0, top_p=1.0, row_of=row_of)[0].view(len(index), -1)
            order.append(index)
            parts.append((label_logits.softmax(-1), mass, drawn))  # stays on its device: a GPU that is asked for each batch waits for Python
            bar.update(len(index))

    rows = torch.cat(order) if order else torch.empty(0, dtype=torch.int64)
    probs = _in_order(rows, [probs for probs, _, _ in parts], torch.empty(len(prompts), len(tokenizer.label_ids)))
    label_mass = _in_order(rows, [mass for _, mass, _ in parts], torch.empty(len(prompts)))
    drawn = None if uniform is None else _in_order(rows, [drawn for _, _, drawn in parts], torch.empty(uniform.shape, dtype=torch.int64))
    finite = torch.isfinite(probs).all(-1) & torch.isfinite(label_mass)
    if not bool(finite.all()):
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"prompt {row}: label probabilities are not finite; the weights hold NaN or --dtype overflows")
    return LabelProbs(probs, label_mass, drawn)


def _in_order(rows: Tensor, parts: list[Tensor], out: Tensor) -> Tensor:
    """`out` (P, ...) with row rows[i] set to row i of all parts together."""
    if parts:
        out[rows] = torch.cat(parts).cpu()
    return out


def first_logits(model, prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits that choose the first token of a reply to each prompt, in batches: their numbers (b,) and logits (b, V) float32.

    What several prompts share at their beginning is computed once (`prefixes.group_by_prefix`; on a GPU for some hundred prompts at a time).
    Each prompt comes exactly once, in no particular order. Raises: ValueError as `label_probabilities`.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens_per_batch is {max_tokens}, expected at least 1")
    limit = model.config.max_position_embeddings
    for row, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limit:
            raise ValueError(f"prompt {row} has {len(prompt)} tokens, expected 1 to {limit} (max_position_embeddings)")
    window = model.config.sliding_window
    shares = not is_plain() and (window is None or window >= max(map(len, prompts), default=0))
    rows_at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    flat = shares and use_varlen(next(model.parameters()), model.config)
    starts = [0, *range(FIRST_PROMPTS, len(prompts), PROMPTS_AT_ONCE)] if flat else [0]
    for start, end in zip(starts, [*starts[1:], len(prompts)]):
        some = prompts[start:end]
        groups = group_by_prefix(some) if shares else [PrefixGroup(0, [row]) for row in range(len(some))]
        alone = [group.rows[0] for group in groups if len(group.rows) == 1]
        together = [group for group in groups if len(group.rows) > 1]
        if flat:
            batches = itertools.chain(_flat_alone(model, some, alone, max_tokens), _flat_behind_prefixes(model, some, together, max_tokens))
        else:
            batches = itertools.chain(_alone(model, some, alone, max_tokens), _behind_prefixes(model, some, together, max_tokens))
        for rows, hidden in batches:
            for index, chunk in zip(torch.tensor(rows).split(rows_at_once), hidden.split(rows_at_once)):
                yield start + index, model.head(chunk).float()


def _alone(model, prompts: Sequence[Sequence[int]], rows: list[int], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """Row numbers and the hidden states (b, C) at their last positions, each row computed in full."""
    device = next(model.parameters()).device
    for batch in batch_by_length([len(prompts[row]) for row in rows], tokens_at_once(max_tokens, device)):
        chosen = [rows[i] for i in batch]
        last = torch.tensor([len(prompts[row]) - 1 for row in chosen], device=device)
        yield chosen, model.hidden(pad_right([prompts[row] for row in chosen]).to(device), read=last[:, None])[:, 0]


def _behind_prefixes(model, prompts: Sequence[Sequence[int]], groups: list[PrefixGroup], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """The same for groups of rows, each with its prefix computed once. As many prefixes are held at a time as `max_tokens` allows."""
    parameter = next(model.parameters())
    device = parameter.device
    for chunk in batch_by_length([group.length for group in groups], max_tokens):
        held = [groups[i] for i in chunk]
        lengths = torch.tensor([group.length for group in held], device=device)
        cache = KVCache(model.config, len(held), int(lengths.max()), parameter.dtype, device)
        heads = pad_right([prompts[group.rows[0]][: group.length] for group in held])
        model.hidden(heads.to(device), cache=cache, read=lengths[:, None] - 1)
        cache.lengths.copy_(lengths)
        suffixes = [[(len(prompts[row]) - group.length, row) for row in group.rows] for group in held]
        for batch in _suffix_batches(suffixes, [group.length for group in held], tokens_at_once(max_tokens, device), model.config):
            first = batch[0][0]
            prefix_of = torch.tensor([group - first for group, _, _ in batch], device=device)
            rows = [row for _, _, row in batch]
            ids = pad_right([prompts[row][held[group].length :] for group, _, row in batch]).to(device)
            last = torch.tensor([length - 1 for _, length, _ in batch], device=device)
            branches = SharedPrefixCache.of(cache, prefix_of, ids.shape[1], first)
            yield rows, model.hidden(ids, cache=branches, read=last[:, None])[:, 0]


def _flat_alone(model, prompts: Sequence[Sequence[int]], rows: list[int], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """`_alone` on a GPU: rows end to end, without padding."""
    device = next(model.parameters()).device
    for batch in _cut([(len(prompts[row]), row) for row in rows], max_tokens):
        flat = VarlenRows(model.config, [length for length, _ in batch], device)
        yield [row for _, row in batch], _read_last(model, [prompts[row] for _, row in batch], flat)


def _flat_behind_prefixes(model, prompts: Sequence[Sequence[int]], groups: list[PrefixGroup], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """`_behind_prefixes` on a GPU: rows end to end, without padding, the first of them in one call with their prefixes."""
    parameter = next(model.parameters())
    longest = max((len(prompts[row]) - group.length for group in groups for row in group.rows), default=0)
    for held in _cut([(group.length, group) for group in groups], max_tokens - longest):  # so that prefixes and a row fit into one call
        held = [group for _, group in held]
        prefixes = VarlenPrefixes(model.config, [group.length for group in held], parameter.dtype, parameter.device)
        rows = [(len(prompts[row]) - group.length, (number, row)) for number, group in enumerate(held) for row in group.rows]
        for batch in _cut(rows, max_tokens, before=sum(prefixes.lengths)):
            first = batch[0][1][0]
            flat = VarlenSuffixes(prefixes, [number - first for _, (number, _) in batch], [length for length, _ in batch], first)
            brought = [prompts[group.rows[0]][: group.length] for group in held] if flat.brings else []
            own = [prompts[row][held[number].length :] for _, (number, row) in batch]
            yield [row for _, (_, row) in batch], _read_last(model, [*brought, *own], flat)


def _read_last(model, rows: Sequence[Sequence[int]], flat: VarlenRows) -> Tensor:
    """Hidden states (R, C) at the last tokens of rows that lie end to end."""
    ids = send(torch.from_numpy(np.fromiter(itertools.chain.from_iterable(rows), np.int64))[None], flat.positions.device)
    return model.hidden(ids, positions=flat.positions, attends=flat, read=flat.last)[0]


def _cut(things: list[tuple[int, Any]], most: int, before: int = 0) -> Iterator[list[tuple[int, Any]]]:
    """Consecutive (length, thing) whose lengths are at most `most` together, in the first batch with `before`; one that is longer comes alone."""
    batch, total = [], before
    for length, thing in things:
        if batch and total + length > most:
            yield batch
            batch, total = [], 0
        batch.append((length, thing))
        total += length
    if batch:
        yield batch


def _suffix_batches(
    groups: list[list[tuple[int, int]]], prefixes: list[int], max_tokens: int, config: DecoderConfig
) -> Iterator[list[tuple[int, int, int]]]:
    """Cut the rows of consecutive groups, given as (length, row), into batches of at most `max_tokens` padded tokens: (group, length, row).

    Lengths run up one group and down the next, so that the end of one and the beginning of another are alike and little is padding.
    prefixes: the groups' lengths. A batch holds no more attention scores than `SharedPrefixCache` computes at once, and its longest prefix with its
    longest suffix, though no prompt may be both, stay within the model's positions.
    """
    batch: list[tuple[int, int, int]] = []
    longest, prefix = 0, 0
    for number, rows in enumerate(groups):
        for length, row in sorted(rows, reverse=number % 2 == 1):
            longest, prefix = max(longest, length), max(prefix, prefixes[number])
            tokens = (len(batch) + 1) * longest
            too_many = tokens > max_tokens or tokens * config.num_attention_heads * (prefix + longest) > SCORES_AT_ONCE
            if batch and (too_many or prefix + longest > config.max_position_embeddings):
                yield batch
                batch, longest, prefix = [], length, prefixes[number]
            batch.append((number, length, row))
    if batch:
        yield batch
