"""Training with shared prompts: replies to one prompt are computed after a single copy of it, forward and backward.

A GRPO group is G replies to one prompt, a DPO pair is two. As rows of a batch they repeat the prompt's tokens; as one
row, `prompt reply_1 reply_2 ...`, they do not. The positions of every reply continue those of the prompt, and a mask
lets a reply attend to the prompt and to itself. Every hidden state is that of the separate row, and so is every
gradient: autograd adds up the replies' gradients of the prompt. `completion_logp` does this where it saves work; on a
CPU `varlen_prompts` saves more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.fast.varlen_prompts import make_varlen, supported
from taosr1.model.config import DecoderConfig

KEEP_BELOW = 0.85  # share of the columns that predict a token; to select more of them costs as much as it saves


@dataclass(frozen=True)
class SharedPromptRows:
    """The B rows of a batch as P rows, each a prompt and its replies, padded on the right to S tokens.

    ids, positions: (P, S) int64. segments: (P, S) int64, 0 in the prompt, k in its k-th reply, -1 in padding.
    row_of: (B,) int64, the new row of each row. source: (B, T) int64, the column there that predicts token t of row b.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    row_of: Tensor
    source: Tensor


def find_prompts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which neighbouring rows share a prompt: what comes before the first True.

    Shapes: ids (B, T) int64, mask (B, T) bool, True on reply tokens -> prompt lengths (B,); ends (B,) one past the last
        True; whether a row is the first with its prompt (B,) bool; the prompt of each row (B,), counted from 0.
    """
    prompts = mask.int().argmax(dim=1)
    ends = ids.shape[1] - mask.flip(1).int().argmax(dim=1)
    differ = (ids[1:] != ids[:-1]) & (torch.arange(ids.shape[1], device=ids.device) < prompts[1:, None])
    shared = (prompts[1:] == prompts[:-1]) & (prompts[1:] > 1) & ~differ.any(dim=1)
    first = torch.cat([shared.new_ones(1), ~shared])
    return prompts, ends, first, first.cumsum(0) - 1


def share_prompts(ids: Tensor, mask: Tensor) -> SharedPromptRows | None:
    """Put neighbouring rows with the same prompt into one row; None if no two rows share a prompt.

    The last token of a reply predicts nothing and is left out.
    Shapes: ids (B, T) int64, mask (B, T) bool, True on reply tokens.
    """
    prompts, ends, first, row_of = find_prompts(ids, mask)
    if bool(first.all()):
        return None
    columns, rows = torch.arange(ids.shape[1], device=ids.device), torch.arange(len(ids), device=ids.device)
    lengths = (ends - 1 - prompts).clamp(min=0)  # (B,), of the replies
    before = lengths.cumsum(0) - lengths
    shift = before - before[first][row_of]  # (B,): how many columns a reply moves to the right, past those before it
    in_reply = columns >= prompts[:, None]  # (B, T), and beyond it
    row, column = ((first[:, None] | in_reply) & (columns < (prompts + lengths)[:, None])).nonzero(as_tuple=True)
    number = 1 + rows - rows[first][row_of]  # (B,), of the reply in its new row
    packed = ids.new_zeros(3, int(first.sum()), int((prompts + lengths + shift).max()))
    packed[2] = -1
    values = torch.stack([ids[row, column], column, torch.where(in_reply[row, column], number[row], 0)])
    packed[:, row_of[row], column + shift[row]] = values
    # The prompt's last token predicts the first token of every reply.
    source = columns - 1 + torch.where(columns == prompts[:, None], 0, shift[:, None])
    return SharedPromptRows(*packed, row_of, source)


def attention_mask(rows: SharedPromptRows, window: int | None) -> Tensor:
    """(P, 1, S, S) bool: a token attends to those before it in its prompt and its own reply, within a window."""
    columns = torch.arange(rows.ids.shape[1], device=rows.ids.device)
    queries, keys = rows.segments[:, :, None], rows.segments[:, None, :]
    mask = (columns[:, None] >= columns) & ((keys == 0) | (keys == queries))  # (P, S, S)
    if window is not None:
        mask &= rows.positions[:, :, None] - rows.positions[:, None, :] < window
    return mask[:, None]


def worthwhile(config: DecoderConfig, batch: tuple[int, int], shared: tuple[int, int]) -> bool:
    """Whether sharing saves multiplications: fewer tokens, but attention that is computed in full and then masked.

    Long replies to a short prompt are better left apart: most of their shared attention would be masked.
    batch, shared: (rows, tokens a row) before and after.
    """
    heads = config.num_attention_heads * config.head_dim
    inner = config.intermediate_size
    if config.num_experts:
        inner = config.num_experts_per_tok * config.moe_intermediate_size
    per_token = config.hidden_size * (2 * heads + 2 * config.num_key_value_heads * config.head_dim + 3 * inner)
    # Causal: half of the pairs, two products each.
    apart = batch[0] * batch[1] * per_token + batch[0] * batch[1] ** 2 * heads
    together = shared[0] * shared[1] * per_token + shared[0] * shared[1] ** 2 * 2 * heads
    return together < apart


def reply_hidden(model, ids: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (N, C) that predict the N masked tokens, in row-major order."""
    prompts, ends, is_first, prompt_of = find_prompts(ids, mask)
    shared = not bool(is_first.all())
    if shared and ids.device.type == "cpu" and supported(model.config, prompts, ends, prompt_of):
        batch = make_varlen(ids, prompts, ends, is_first, prompt_of)
        hidden = model.hidden(batch.ids, positions=batch.positions, attend=batch, keep=batch.keep)
        return hidden[0].index_select(0, batch.source[mask])
    rows = share_prompts(ids, mask)
    if rows is None or not worthwhile(model.config, (len(ids), ids.shape[1] - 1), tuple(rows.ids.shape)):
        tokens, given = ids[:, :-1], {}
        row, column = mask[:, 1:].nonzero(as_tuple=True)  # (N,), (N,): column t predicts token t + 1
    else:
        tokens = rows.ids
        given = {"positions": rows.positions, "attend": attention_mask(rows, model.config.sliding_window)}
        row, column = rows.row_of[:, None].expand(mask.shape)[mask], rows.source[mask]
    first = column.new_full((len(tokens),), tokens.shape[1]).scatter_reduce(0, row, column, "amin")
    width = int((column - first[row]).max()) + 1 if len(column) else tokens.shape[1]
    if width > KEEP_BELOW * tokens.shape[1]:
        return pick(model.hidden(tokens, **given), row, column)
    keep = (first[:, None] + torch.arange(width, device=ids.device)).clamp(max=tokens.shape[1] - 1)  # (P, T')
    return pick(model.hidden(tokens, **given, keep=keep), row, column - first[row])


def pick(hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """hidden[row, column], (N, C).

    A prompt's last token is picked once for each reply. This way the sum of their gradients has one order; the gradient
    of indexing is added up by several threads at once, and no two runs are the same.
    """
    return hidden.flatten(0, 1).index_select(0, row * hidden.shape[1] + column)
