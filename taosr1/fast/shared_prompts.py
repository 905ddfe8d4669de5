"""Replies to one prompt, side by side in a batch, behind a single copy of that prompt: computed once, forward and backward.

A GRPO group is G replies to one prompt, a DPO pair is two. As rows of a batch they repeat the prompt's tokens; packed into
one row, `prompt reply_1 reply_2 ...`, they do not. Positions begin anew behind the prompt for every reply, and a mask lets a
reply see the prompt and itself. Each hidden state is the one of the unpacked row, and so is each gradient: autograd adds up
what the replies want from the prompt. `completion_logp` packs by itself where that pays; on a CPU it does one better, see
`flat_prompts`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.fast.varlen_prompts import fits, lay_flat
from taosr1.model.config import DecoderConfig

READ_BELOW = 0.85  # of the columns; where more are read, picking them costs as much as it saves


@dataclass(frozen=True)
class Packed:
    """P packs of the B rows of a batch, padded on the right to S tokens.

    ids, positions: (P, S) int64. segments: (P, S) int64, 0 in the prompt, k in its k-th reply, -1 in padding.
    pack: (B,) int64, the pack of each row. source: (B, T) int64, where in its pack stands what predicts token t of row b.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    pack: Tensor
    source: Tensor


def shared_with_above(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Prompt lengths (B,), ends (B,) one past the last True, and (B - 1,) bool: whether a row's prompt is that of the row above.

    The prompt is what stands before the first True. Shapes: ids (B, T) int64, mask (B, T) bool, True on reply tokens.
    """
    prompts = mask.int().argmax(dim=1)
    ends = ids.shape[1] - mask.flip(1).int().argmax(dim=1)
    differ = (ids[1:] != ids[:-1]) & (torch.arange(ids.shape[1], device=ids.device) < prompts[1:, None])
    return prompts, ends, (prompts[1:] == prompts[:-1]) & (prompts[1:] > 1) & ~differ.any(dim=1)


def pack_rows(ids: Tensor, mask: Tensor) -> Packed | None:
    """Pack neighbouring rows with the same prompt; None where no two share one.

    The last token of a reply predicts nothing and is left out.
    Shapes: ids (B, T) int64, mask (B, T) bool, True on reply tokens.
    """
    prompts, ends, shared = shared_with_above(ids, mask)
    if not shared.any():
        return None
    rows, prompts, ends, new = ids.cpu(), prompts.tolist(), ends.tolist(), [True, *(~shared).tolist()]
    parts: list[list[tuple[Tensor, Tensor, int]]] = []  # of each pack: ids, positions, segment
    pack, source, used = [], torch.zeros_like(rows), 0
    for row, (start, end) in enumerate(zip(prompts, ends)):
        if new[row]:
            parts.append([(rows[row, :start], torch.arange(start), 0)])
            used = start
        length = max(0, end - 1 - start)
        parts[-1].append((rows[row, start : start + length], torch.arange(start, start + length), len(parts[-1])))
        pack.append(len(parts) - 1)
        source[row, start] = start - 1  # the prompt's last token predicts the first of every reply
        source[row, start + 1 : start + 1 + length] = torch.arange(used, used + length)
        used += length
    width = max(sum(len(tokens) for tokens, _, _ in of_pack) for of_pack in parts)
    packed = [torch.zeros(len(parts), width, dtype=torch.int64) for _ in range(2)] + [torch.full((len(parts), width), -1)]
    for number, of_pack in enumerate(parts):
        columns = (*(torch.cat(column) for column in list(zip(*of_pack))[:2]), torch.cat([torch.full((len(t),), s) for t, _, s in of_pack]))
        for target, values in zip(packed, columns):
            target[number, : len(values)] = values
    return Packed(*(tensor.to(ids.device) for tensor in (*packed, torch.tensor(pack), source)))


def attends(packed: Packed, window: int | None) -> Tensor:
    """(P, 1, S, S) bool: a token sees what stands before it in the prompt and in its own reply, within a sliding window."""
    steps = torch.arange(packed.ids.shape[1], device=packed.ids.device)
    queries, keys = packed.segments[:, :, None], packed.segments[:, None, :]
    seen = (steps[:, None] >= steps) & ((keys == 0) | (keys == queries))  # (P, S, S)
    if window is not None:
        seen &= packed.positions[:, :, None] - packed.positions[:, None, :] < window
    return seen[:, None]


def pays(config: DecoderConfig, batch: tuple[int, int], packs: tuple[int, int]) -> bool:
    """Whether packing saves multiplications: fewer tokens go through the matrices, but the packed attention is dense.

    Long replies behind a short prompt are better left apart: their packed attention would mostly compute what is masked.
    batch, packs: (rows, tokens a row) before and after.
    """
    heads = config.num_attention_heads * config.head_dim
    inner = config.num_experts_per_tok * config.moe_intermediate_size if config.num_experts else config.intermediate_size
    per_token = config.hidden_size * (2 * heads + 2 * config.num_key_value_heads * config.head_dim + 3 * inner)
    apart = batch[0] * batch[1] * per_token + batch[0] * batch[1] ** 2 * heads  # causal: half of the pairs, two products each
    together = packs[0] * packs[1] * per_token + packs[0] * packs[1] ** 2 * 2 * heads
    return together < apart


def reply_hidden(model, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (N, C) that predict the N masked tokens, in row-major order."""
    targets = mask[:, 1:]
    prompts, ends, shared = shared_with_above(ids, mask)
    if ids.device.type == "cpu" and bool(shared.any()) and fits(model.config, prompts, ends, shared):
        laid = lay_flat(ids, prompts, ends, shared)
        return model.hidden(laid.ids, positions=laid.positions, attend=laid, keep=laid.read)[0].index_select(0, laid.source[mask])
    packed, given = pack_rows(ids, mask), {}
    if packed is None or not pays(model.config, (len(ids), ids.shape[1] - 1), tuple(packed.ids.shape)):
        tokens, rows, columns = ids[:, :-1], *targets.nonzero(as_tuple=True)  # what predicts target (b, t) stands at (b, t)
    else:
        tokens, given = packed.ids, {"positions": packed.positions, "attend": attends(packed, model.config.sliding_window)}
        rows, columns = packed.pack[:, None].expand(targets.shape)[targets], packed.source[:, 1:][targets]  # (N,), (N,)
    first = columns.new_full((len(tokens),), tokens.shape[1]).scatter_reduce(0, rows, columns, "amin")
    width = int((columns - first[rows]).max()) + 1 if len(columns) else tokens.shape[1]
    if width > READ_BELOW * tokens.shape[1]:
        return pick(model.hidden(tokens, **given), rows, columns)
    read = (first[:, None] + torch.arange(width, device=ids.device)).clamp(max=tokens.shape[1] - 1)  # (P, T'): the replies' part alone
    return pick(model.hidden(tokens, **given, keep=read), rows, columns - first[rows])


def pick(hidden: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """hidden[rows, columns], (N, C). A prompt's last token is picked once for each of its replies: this way the sum of their gradients has one
    order, where the gradient of indexing adds on several threads at once, and no two runs are the same.
    """
    return hidden.flatten(0, 1).index_select(0, rows * hidden.shape[1] + columns)
