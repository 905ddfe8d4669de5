"""Label probabilities with shared prefixes computed once; the plain twin is `taosr1.sampling.label_probs`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from taosr1.fast.choose_tokens import choose_tokens
from taosr1.fast.kv_cache import FastKVCache
from taosr1.fast.prefix_groups import PrefixGroup, group_by_prefix, tokens_at_once
from taosr1.fast.shared_prefix_cache import SCORES_AT_ONCE, SharedPrefixCache
from taosr1.fast.varlen import VarlenPrefixes, VarlenRows, VarlenSuffixes, send, use_varlen
from taosr1.model.config import DecoderConfig
from taosr1.sampling.batching import batch_by_length, pad_right
from taosr1.sampling.label_probs import LabelProbs, check_prompts, read_labels

# The head runs over the whole vocabulary to measure label mass; this bounds its (rows, V) float32 logits to 64 MiB.
LOGITS_AT_ONCE = 1 << 24
# On a GPU so many prompts are looked through for what they share while it computes those before. At first it has nothing to do: fewer.
PROMPTS_AT_ONCE, FIRST_PROMPTS = 512, 128


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
    """`taosr1.sampling.label_probs.label_probabilities` with prefixes that prompts share computed once.

    Arguments, results and errors are those.
    """
    check_prompts(prompts, model.config, max_tokens_per_batch)
    order, found = [], []
    with tqdm(total=len(prompts), desc="score", unit="pair", disable=not progress) as bar:
        for index, logits in first_logits(model, prompts, max_tokens_per_batch):  # (b,), (b, V)
            tokens = None
            if uniform is not None:
                draws = uniform[index].flatten().to(logits.device)
                row_of = torch.arange(len(index), device=logits.device).repeat_interleave(uniform.shape[1])
                tokens, _ = choose_tokens(logits, draws, temperature=temperature, row_of=row_of)
                tokens = tokens.view(len(index), -1)
            order.append(index)
            # Results stay on their device: a GPU that is asked for each batch waits for Python.
            found.append((*read_labels(logits, tokenizer.label_ids), tokens))
            bar.update(len(index))
    result = LabelProbs.empty(len(prompts), uniform)
    if order:
        rows, (probs, mass, tokens) = torch.cat(order), zip(*found)
        result.probs[rows], result.label_mass[rows] = torch.cat(probs).cpu(), torch.cat(mass).cpu()
        if uniform is not None:
            result.first_tokens[rows] = torch.cat(tokens).cpu()
    return result.checked()


def first_logits(model, prompts: Sequence[Sequence[int]], max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits that choose the first token of a reply to each prompt, in batches: their numbers (b,) and logits (b, V) float32.

    What several prompts share at their beginning is computed once (`prefixes.group_by_prefix`; on a GPU for some hundred prompts at a time).
    Each prompt comes exactly once, in no particular order.
    """
    window = model.config.sliding_window
    shares = (window is None or window >= max(map(len, prompts), default=0))
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
        yield chosen, model.hidden(pad_right([prompts[row] for row in chosen]).to(device), keep=last[:, None])[:, 0]


def _behind_prefixes(model, prompts: Sequence[Sequence[int]], groups: list[PrefixGroup], max_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """The same for groups of rows, each with its prefix computed once. As many prefixes are held at a time as `max_tokens` allows."""
    parameter = next(model.parameters())
    device = parameter.device
    for chunk in batch_by_length([group.length for group in groups], max_tokens):
        held = [groups[i] for i in chunk]
        lengths = torch.tensor([group.length for group in held], device=device)
        cache = FastKVCache(model.config, len(held), int(lengths.max()), parameter.dtype, device)
        heads = pad_right([prompts[group.rows[0]][: group.length] for group in held])
        model.hidden(heads.to(device), cache=cache, keep=lengths[:, None] - 1)
        cache.lengths.copy_(lengths)
        suffixes = [[(len(prompts[row]) - group.length, row) for row in group.rows] for group in held]
        for batch in _suffix_batches(suffixes, [group.length for group in held], tokens_at_once(max_tokens, device), model.config):
            first = batch[0][0]
            prefix_of = torch.tensor([group - first for group, _, _ in batch], device=device)
            rows = [row for _, _, row in batch]
            ids = pad_right([prompts[row][held[group].length :] for group, _, row in batch]).to(device)
            last = torch.tensor([length - 1 for _, length, _ in batch], device=device)
            branches = SharedPrefixCache.of(cache, prefix_of, ids.shape[1], first)
            yield rows, model.hidden(ids, cache=branches, keep=last[:, None])[:, 0]


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
    return model.hidden(ids, positions=flat.positions, attend=flat, keep=flat.last)[0]


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
