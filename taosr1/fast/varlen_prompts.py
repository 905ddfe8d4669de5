"""Prompts once, replies behind them, all tokens in one flat row without padding: the layout that training uses on a CPU.

`shared_prompts` packs a prompt and its replies into one row and masks what they must not see of each other: most of a group's
attention is then computed in vain. Here attention is cut where the group is: prompts attend to themselves, and replies to their prompt
and to themselves (`attention.shared_attention`, forward and backward). In return all scores of a layer are kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.fast.attention import PrefixGrouping, fused_attention, shared_attention
from taosr1.model.config import DecoderConfig

SCORES_AT_ONCE = 2**23  # numbers kept of every layer: 32 MiB


@dataclass(frozen=True)
class Flat:
    """P prompts and R replies: the tokens of all prompts, then those of all replies, N together.

    ids, positions: (1, N) int64. read: (1, P + M), the columns that predict something: the last token of every prompt, and all M reply
    tokens. source: (B, T) int64, which of the columns read predicts token t of row b.
    prompt_places, reply_places: where the tokens lie in (P, S) and (R, T), the padded forms that attention works on.
    """

    ids: Tensor
    positions: Tensor
    read: Tensor
    source: Tensor
    prompt_places: Tensor
    reply_places: Tensor
    prompt_lengths: Tensor
    longest_reply: int
    grid: PrefixGrouping

    @property
    def used(self) -> int:
        return int(self.positions.max()) + 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """Queries (1, N, H, D), or of the columns `read` alone; keys and values (1, N, K, D) -> (1, N or P + M, H * D)."""
        prompts, longest, replies = len(self.prompt_lengths), int(self.prompt_lengths.max()), len(self.grid.prefix_of)
        cut = len(self.prompt_places)

        def of_prompts(x: Tensor) -> Tensor:
            return padded(x[0, :cut], self.prompt_places, prompts, longest)

        def of_replies(x: Tensor, start: int = cut) -> Tensor:
            return padded(x[0, start:], self.reply_places, replies, self.longest_reply)

        prompt_key, prompt_value = of_prompts(key).transpose(1, 2), of_prompts(value).transpose(1, 2)  # (P, K, S, D)
        seen = torch.arange(longest, device=query.device) < self.prompt_lengths[:, None]  # (P, S)
        if query.shape[1] == key.shape[1]:
            start, at_prompts = cut, fused_attention(of_prompts(query), prompt_key, prompt_value, None).flatten(0, 1)[self.prompt_places]
        else:  # the last layer: of the prompts only their last tokens ask
            start, at_prompts = prompts, fused_attention(query[0, :prompts, None], prompt_key, prompt_value, seen[:, None, None])[:, 0]
        columns = torch.arange(self.longest_reply, device=query.device)
        own = (of_replies(key).transpose(1, 2), of_replies(value).transpose(1, 2), (columns <= columns[:, None])[None, None])
        at_replies = shared_attention(of_replies(query, start), prompt_key, prompt_value, None if bool(seen.all()) else seen, *own, self.grid)
        return torch.cat([at_prompts, at_replies.flatten(0, 1)[self.reply_places]])[None]


def padded(x: Tensor, places: Tensor, rows: int, length: int) -> Tensor:
    """Tokens (n, ...) at their places of a tensor (rows, length, ...) of zeros."""
    if len(places) == rows * length:
        return x.view(rows, length, *x.shape[1:])
    return x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, places, x).view(rows, length, *x.shape[1:])


def lay_flat(ids: Tensor, prompts: Tensor, ends: Tensor, shared: Tensor) -> Flat:
    """The rows of a batch, neighbours with the same prompt behind one copy of it. The last token of a reply predicts nothing and is left out.

    Shapes: ids (B, T); prompts (B,), tokens before a row's reply; ends (B,), one past its last token; shared (B - 1,), whether a row's
    prompt is that of the row before it.
    """
    columns, device = torch.arange(ids.shape[1], device=ids.device), ids.device
    prefix_of = torch.cat([shared.new_zeros(1), ~shared]).cumsum(0)  # (B,)
    first = torch.cat([shared.new_ones(1), ~shared])  # (B,): whether a row brings a new prompt
    lengths = prompts[first]  # (P,)
    in_prompt = columns[: int(lengths.max())] < lengths[:, None]  # (P, S)
    in_reply = (columns >= prompts[:, None]) & (columns < ends[:, None] - 1)  # (B, T)
    longest = max(1, int((ends - 1 - prompts).max()))
    row, column = in_reply.nonzero(as_tuple=True)  # (M,), (M,)
    prompt_ids = ids[first][:, : in_prompt.shape[1]]
    read = torch.cat([lengths.cumsum(0) - 1, torch.arange(len(row), device=device) + int(lengths.sum())])
    number = in_reply.flatten().cumsum(0).view(in_reply.shape) - 1 + len(lengths)  # (B, T): which column read a reply token is
    source = torch.zeros_like(ids)
    source[:, 1:] = torch.where(columns[1:] == prompts[:, None], prefix_of[:, None], number[:, :-1])
    return Flat(
        ids=torch.cat([prompt_ids[in_prompt], ids[in_reply]])[None],
        positions=torch.cat([in_prompt.nonzero(as_tuple=True)[1], column])[None],
        read=read[None],
        source=source,
        prompt_places=in_prompt.flatten().nonzero()[:, 0],
        reply_places=row * longest + column - prompts[row],
        prompt_lengths=lengths,
        longest_reply=longest,
        grid=PrefixGrouping(prefix_of, len(lengths)),
    )


def fits(config: DecoderConfig, prompts: Tensor, ends: Tensor, shared: Tensor) -> bool:
    """Whether the layout can be used: the scores of a layer (replies times heads times their tokens times all that they see, a place for as
    many replies to every prompt as one of them has) are few enough to be kept, every row has a prompt, and no sliding window ends before
    a row does. Arguments are those of `lay_flat`.
    """
    longest, window = int((ends - prompts).max()), config.sliding_window
    replies = torch.bincount(torch.cat([shared.new_zeros(1), ~shared]).cumsum(0))  # (P,)
    few = len(replies) * int(replies.max()) * config.num_attention_heads * longest * (int(prompts.max()) + longest) <= SCORES_AT_ONCE
    return few and int(prompts.min()) > 0 and (window is None or window >= int(ends.max()))
