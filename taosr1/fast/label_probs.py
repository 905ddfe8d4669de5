"""Label probabilities with shared prefixes computed once; the plain twin is `taosr1.sampling.label_probs`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taosr1.fast.choose_tokens import choose_tokens
from taosr1.fast.kv_cache import FastKVCache
from taosr1.fast.prefix_groups import PrefixGroup, group_by_prefix, tokens_at_once
from taosr1.fast.shared_prefix_cache import SCORES_AT_ONCE, SharedPrefixCache
from taosr1.fast.varlen import VarlenPrefixes, VarlenRows, VarlenSuffixes, to_device_async, use_varlen
from taosr1.model.config import DecoderConfig
from taosr1.runtime.progress import report
from taosr1.sampling.batching import batch_by_length, pad_right
from taosr1.sampling.label_probs import LabelProbs, check_prompts, read_labels

Prompts = Sequence[Sequence[int]]
Batches = Iterator[tuple[list[int], Tensor]]  # prompts' indices, and the hidden states (b, C) at their last tokens

# The head runs over the whole vocabulary to measure label mass; this bounds its (rows, V) float32 logits to 64 MiB.
LOGITS_AT_ONCE = 2**24
# A GPU computes while Python groups the next prompts by prefix; it waits for the first ones, so these are fewer.
PROMPTS_AT_ONCE, FIRST_PROMPTS = 512, 128


@torch.no_grad()
def label_probabilities(
    model, tokenizer, prompts: Prompts, *, max_tokens_per_batch: int = 16384, uniform: Tensor | None = None,
    temperature: float = 1.0,
) -> LabelProbs:  # fmt: skip
    """`taosr1.sampling.label_probs.label_probabilities` with prefixes that prompts share computed once.

    Arguments, results and errors are those.
    """
    check_prompts(prompts, model.config, max_tokens_per_batch)
    order, found, done = [], [], 0
    for index, logits in first_logits(model, prompts, max_tokens_per_batch):  # (b,), (b, V)
        tokens = None
        if uniform is not None:
            draws = uniform[index].flatten().to(logits.device)
            row_of = torch.arange(len(index), device=logits.device).repeat_interleave(uniform.shape[1])
            tokens, _ = choose_tokens(logits, draws, temperature=temperature, row_of=row_of)
            tokens = tokens.view(len(index), -1)
        order.append(index)
        # Results stay on their device: to fetch each batch would make Python wait for the GPU.
        found.append((*read_labels(logits, tokenizer.label_ids), tokens))
        report("pairs scored", done := done + len(index), len(prompts))
    result = LabelProbs.empty(len(prompts), uniform)
    if order:
        rows, (probs, mass, tokens) = torch.cat(order), zip(*found)
        result.probs[rows], result.label_mass[rows] = torch.cat(probs).cpu(), torch.cat(mass).cpu()
        if uniform is not None:
            result.first_tokens[rows] = torch.cat(tokens).cpu()
    return result.checked()


def first_logits(model, prompts: Prompts, max_tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of the first reply token, in batches: the prompts' indices (b,) and logits (b, V) float32.

    Every prompt comes exactly once, in no particular order. A prefix of several prompts is computed once
    (`group_by_prefix`; on a GPU among some hundred prompts at a time).
    """
    window = model.config.sliding_window
    shares = window is None or window >= max(map(len, prompts), default=0)
    rows_at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    varlen = shares and use_varlen(next(model.parameters()), model.config)
    single_rows, grouped_rows = (_varlen_rows, _varlen_groups) if varlen else (_padded_rows, _padded_groups)
    starts = [0, *range(FIRST_PROMPTS, len(prompts), PROMPTS_AT_ONCE)] if varlen else [0]
    for start, end in zip(starts, [*starts[1:], len(prompts)]):
        some = prompts[start:end]
        groups = group_by_prefix(some) if shares else [PrefixGroup(0, [row]) for row in range(len(some))]
        single = [group.rows[0] for group in groups if len(group.rows) == 1]
        groups = [group for group in groups if len(group.rows) > 1]
        batches = chain(single_rows(model, some, single, max_tokens), grouped_rows(model, some, groups, max_tokens))
        for rows, hidden in batches:
            for index, chunk in zip(torch.tensor(rows).split(rows_at_once), hidden.split(rows_at_once)):
                yield start + index, model.head(chunk).float()


def _padded_rows(model, prompts: Prompts, rows: list[int], max_tokens: int) -> Batches:
    """Prompts that share no prefix, padded to the longest of their batch."""
    device = next(model.parameters()).device
    for batch in batch_by_length([len(prompts[row]) for row in rows], tokens_at_once(max_tokens, device)):
        chosen = [rows[i] for i in batch]
        last = torch.tensor([len(prompts[row]) - 1 for row in chosen], device=device)
        ids = pad_right([prompts[row] for row in chosen]).to(device)
        yield chosen, model.hidden(ids, keep=last[:, None])[:, 0]


def _padded_groups(model, prompts: Prompts, groups: list[PrefixGroup], max_tokens: int) -> Batches:
    """Groups of prompts, each prefix computed once, as many prefixes in memory as `max_tokens` allows."""
    parameter = next(model.parameters())
    device = parameter.device
    for chunk in batch_by_length([group.length for group in groups], max_tokens):
        chosen = [groups[i] for i in chunk]
        lengths = torch.tensor([group.length for group in chosen], device=device)
        cache = FastKVCache(model.config, len(chosen), int(lengths.max()), parameter.dtype, device)
        prefixes = pad_right([prompts[group.rows[0]][: group.length] for group in chosen])
        model.hidden(prefixes.to(device), cache=cache, keep=lengths[:, None] - 1)
        cache.lengths.copy_(lengths)
        suffixes = [[(len(prompts[row]) - group.length, row) for row in group.rows] for group in chosen]
        budget = tokens_at_once(max_tokens, device)
        for batch in _suffix_batches(suffixes, [group.length for group in chosen], budget, model.config):
            first = batch[0][0]
            prefix_of = torch.tensor([group - first for group, _, _ in batch], device=device)
            ids = pad_right([prompts[row][chosen[group].length :] for group, _, row in batch]).to(device)
            last = torch.tensor([length - 1 for _, length, _ in batch], device=device)
            suffix_cache = SharedPrefixCache.of(cache, prefix_of, ids.shape[1], first)
            yield [row for _, _, row in batch], model.hidden(ids, cache=suffix_cache, keep=last[:, None])[:, 0]


def _varlen_rows(model, prompts: Prompts, rows: list[int], max_tokens: int) -> Batches:
    """`_padded_rows` on a GPU, without padding."""
    device = next(model.parameters()).device
    for batch in _split([(len(prompts[row]), row) for row in rows], max_tokens):
        varlen = VarlenRows(model.config, [length for length, _ in batch], device)
        yield [row for _, row in batch], _last_hidden(model, [prompts[row] for _, row in batch], varlen)


def _varlen_groups(model, prompts: Prompts, groups: list[PrefixGroup], max_tokens: int) -> Batches:
    """`_padded_groups` on a GPU, without padding; one call computes prefixes and the first rows that continue them."""
    parameter = next(model.parameters())
    longest = max((len(prompts[row]) - group.length for group in groups for row in group.rows), default=0)
    # Less by the longest row, so that the prefixes and any row fit into one call.
    for chunk in _split([(group.length, group) for group in groups], max_tokens - longest):
        chosen = [group for _, group in chunk]
        prefixes = VarlenPrefixes(model.config, [group.length for group in chosen], parameter.dtype, parameter.device)
        rows = [
            (len(prompts[row]) - group.length, (number, row))
            for number, group in enumerate(chosen)
            for row in group.rows
        ]
        sequences = [prompts[group.rows[0]][: group.length] for group in chosen]  # of the first call alone
        for batch in _split(rows, max_tokens, before=sum(prefixes.lengths)):
            lengths, first = [length for length, _ in batch], batch[0][1][0]
            prefix_of = [number - first for _, (number, _) in batch]
            varlen = VarlenSuffixes(prefixes, prefix_of, lengths, first, computes_prefixes=bool(sequences))
            sequences += [prompts[row][chosen[number].length :] for _, (number, row) in batch]
            yield [row for _, (_, row) in batch], _last_hidden(model, sequences, varlen)
            sequences = []


def _last_hidden(model, sequences: Prompts, varlen: VarlenRows) -> Tensor:
    """Hidden states (R, C) at the last tokens of concatenated rows."""
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(sequences), np.int64))[None]
    ids = to_device_async(ids, varlen.positions.device)
    return model.hidden(ids, positions=varlen.positions, attend=varlen, keep=varlen.last)[0]


def _split(items: list[tuple[int, Any]], most: int, before: int = 0) -> Iterator[list[tuple[int, Any]]]:
    """Consecutive (length, item) whose lengths sum to at most `most`, the first batch with `before` more.

    An item that is longer comes alone.
    """
    batch, total = [], before
    for length, item in items:
        if batch and total + length > most:
            yield batch
            batch, total = [], 0
        batch.append((length, item))
        total += length
    if batch:
        yield batch


def _suffix_batches(
    groups: list[list[tuple[int, int]]], prefixes: list[int], max_tokens: int, config: DecoderConfig
) -> Iterator[list[tuple[int, int, int]]]:
    """Batches of (group, length, row) of at most `max_tokens` padded tokens, from groups of (length, row).

    Lengths ascend in one group and descend in the next, so that the end of one and the beginning of another are alike
    and little is padding.
    prefixes: the groups' prefix lengths. A batch has no more attention scores than `SharedPrefixCache` computes at
    once; and its longest prefix and longest suffix together fit into the model's positions, though no prompt may have
    both.
    """
    batch: list[tuple[int, int, int]] = []
    longest, prefix = 0, 0
    for number, rows in enumerate(groups):
        for length, row in sorted(rows, reverse=number % 2 == 1):
            longest, prefix = max(longest, length), max(prefix, prefixes[number])
            tokens = (len(batch) + 1) * longest
            scores = tokens * config.num_attention_heads * (prefix + longest)
            full = tokens > max_tokens or scores > SCORES_AT_ONCE
            if batch and (full or prefix + longest > config.max_position_embeddings):
                yield batch
                batch, longest, prefix = [], length, prefixes[number]
            batch.append((number, length, row))
    if batch:
        yield batch
