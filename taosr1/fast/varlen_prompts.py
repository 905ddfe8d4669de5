"""Training with shared prompts on a CPU (varlen): prompts once, then their replies, concatenated without padding.

`shared_prompts` puts a prompt and its replies into one row and masks what a reply may not attend to: most scores of a
group are then computed in vain. Here attention is split instead: prompts attend to themselves, replies to their prompt
and to themselves (`attention.shared_attention`, forward and backward). All scores of a layer are kept for the backward
pass, so this is for few of them (`supported`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.fast.attention import PrefixGrouping, fused_attention, shared_attention
from taosr1.model.config import DecoderConfig

SCORES_AT_ONCE = 2**23  # numbers kept for every layer: 32 MiB


@dataclass(frozen=True)
class VarlenPrompts:
    """P prompts and R replies: the tokens of all prompts, then those of all replies, N together. An `AttentionBackend`.

    ids, positions: (1, N) int64. keep: (1, P + M) int64, the columns that predict a token: the last of every prompt,
    and all M reply tokens. source: (B, T) int64, which of the kept columns predicts token t of row b.
    prompt_places, reply_places: where the tokens are in (P, S) and (R, T), the padded shapes that attention works on.
    """

    ids: Tensor
    positions: Tensor
    keep: Tensor
    source: Tensor
    prompt_places: Tensor
    reply_places: Tensor
    prompt_lengths: Tensor
    longest_reply: int
    grouping: PrefixGrouping

    @property
    def used(self) -> int:
        return int(self.positions.max()) + 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `AttentionBackend`. Shapes: query (1, N, H, D), or (1, P + M, H, D) at the kept columns."""
        prompts, longest = len(self.prompt_lengths), int(self.prompt_lengths.max())
        prompt_tokens, replies = len(self.prompt_places), len(self.grouping.prefix_of)

        def of_prompts(x: Tensor) -> Tensor:
            return pad(x[0, :prompt_tokens], self.prompt_places, prompts, longest)

        def of_replies(x: Tensor, start: int = prompt_tokens) -> Tensor:
            return pad(x[0, start:], self.reply_places, replies, self.longest_reply)

        prompt_key, prompt_value = of_prompts(key).transpose(1, 2), of_prompts(value).transpose(1, 2)  # (P, K, S, D)
        real = torch.arange(longest, device=query.device) < self.prompt_lengths[:, None]  # (P, S)
        if query.shape[1] == key.shape[1]:
            start, out = prompt_tokens, fused_attention(of_prompts(query), prompt_key, prompt_value, None)
            out = out.flatten(0, 1)[self.prompt_places]
        else:  # the last layer: only the last token of a prompt has a query
            start, last = prompts, query[0, :prompts, None]
            out = fused_attention(last, prompt_key, prompt_value, real[:, None, None])[:, 0]
        columns = torch.arange(self.longest_reply, device=query.device)
        causal = (columns <= columns[:, None])[None, None]
        prompt = (prompt_key, prompt_value, None if bool(real.all()) else real)
        own = (of_replies(key).transpose(1, 2), of_replies(value).transpose(1, 2), causal)
        reply_out = shared_attention(of_replies(query, start), *prompt, *own, self.grouping)
        return torch.cat([out, reply_out.flatten(0, 1)[self.reply_places]])[None]


def pad(x: Tensor, places: Tensor, rows: int, length: int) -> Tensor:
    """Tokens (n, ...) at their places of a tensor (rows, length, ...) of zeros."""
    if len(places) == rows * length:
        return x.view(rows, length, *x.shape[1:])
    return x.new_zeros(rows * length, *x.shape[1:]).index_copy(0, places, x).view(rows, length, *x.shape[1:])


def make_varlen(ids: Tensor, prompts: Tensor, ends: Tensor, first: Tensor, prefix_of: Tensor) -> VarlenPrompts:
    """The rows of a batch, ids (B, T), neighbours with the same prompt after one copy of it.

    The last token of a reply predicts nothing and is left out. The other arguments are those that `find_prompts` finds.
    """
    columns, device = torch.arange(ids.shape[1], device=ids.device), ids.device
    lengths = prompts[first]  # (P,)
    in_prompt = columns[: int(lengths.max())] < lengths[:, None]  # (P, S)
    in_reply = (columns >= prompts[:, None]) & (columns < ends[:, None] - 1)  # (B, T)
    longest = max(1, int((ends - 1 - prompts).max()))
    row, column = in_reply.nonzero(as_tuple=True)  # (M,), (M,)
    prompt_ids = ids[first][:, : in_prompt.shape[1]]
    keep = torch.cat([lengths.cumsum(0) - 1, torch.arange(len(row), device=device) + int(lengths.sum())])
    number = in_reply.flatten().cumsum(0).view(in_reply.shape) - 1 + len(lengths)  # (B, T): a reply token's kept column
    source = torch.zeros_like(ids)
    source[:, 1:] = torch.where(columns[1:] == prompts[:, None], prefix_of[:, None], number[:, :-1])
    return VarlenPrompts(
        ids=torch.cat([prompt_ids[in_prompt], ids[in_reply]])[None],
        positions=torch.cat([in_prompt.nonzero(as_tuple=True)[1], column])[None],
        keep=keep[None],
        source=source,
        prompt_places=in_prompt.flatten().nonzero()[:, 0],
        reply_places=row * longest + column - prompts[row],
        prompt_lengths=lengths,
        longest_reply=longest,
        grouping=PrefixGrouping(prefix_of, len(lengths)),
    )


def supported(config: DecoderConfig, prompts: Tensor, ends: Tensor, prefix_of: Tensor) -> bool:
    """Whether this layout can be used: the scores of a layer are few enough to be kept, every row has a prompt, and no
    sliding window ends within a row. Arguments are those of `make_varlen`.

    Scores: replies x heads x their tokens x keys, where every prompt takes as many replies as the largest group has.
    """
    longest, window = int((ends - prompts).max()), config.sliding_window
    replies = torch.bincount(prefix_of)  # (P,)
    queries = len(replies) * int(replies.max()) * config.num_attention_heads * longest
    few = queries * (int(prompts.max()) + longest) <= SCORES_AT_ONCE
    return few and int(prompts.min()) > 0 and (window is None or window >= int(ends.max()))
