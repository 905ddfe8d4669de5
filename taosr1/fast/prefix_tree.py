"""Training with shared prefixes: what rows of a batch begin with alike is computed once, forward and backward.

All prompts of a batch begin with the same instructions, those of one query go on with that query, a DPO pair is two
replies to one prompt and a GRPO group is G, some of which begin alike or are equal. Sorted, rows that begin alike are
neighbours, and every row adds to the one before it the tokens after what the two share: all rows are then a tree of
prefixes, whose N tokens are run through the model as one sequence without padding. The position of every token is that
in its row, and it attends to its row alone (`tree_attention.py`). So every hidden state is that of the separate row,
and so is every gradient: those of a shared token are added up over the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taosr1.fast.tree_attention import Tiles, make_tiles, tree_attention
from taosr1.model.config import DecoderConfig


@dataclass(frozen=True)
class PrefixTree:
    """N different tokens of a batch, of which M predict a token that is asked for. An `AttentionBackend`.

    ids, positions: (1, N) int64. keep: (1, M) int64, the columns that predict. source: which of these predicts each
    masked token of the batch, (mask.sum(),) int64, in row-major order. used: one past the highest position.
    tiles: the attention of all N queries; kept_tiles: of the M in `keep`.
    """

    ids: Tensor
    positions: Tensor
    keep: Tensor
    source: Tensor
    used: int
    tiles: Tiles
    kept_tiles: Tiles

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: None) -> Tensor:
        """See `AttentionBackend`. Shapes: query (1, N, H, D), or (1, M, H, D) at the kept columns."""
        tiles = self.tiles if query.shape[1] == key.shape[1] else self.kept_tiles
        return tree_attention(query[0], key[0], value[0], tiles).flatten(1)[None]


def make_tree(ids: Tensor, mask: Tensor, config: DecoderConfig) -> PrefixTree:
    """The rows of a batch as a prefix tree.

    A row ends before its last masked token, which predicts nothing.
    Shapes: ids (B, T) int64, mask (B, T) bool, True where a token's log-prob is asked for.
    """
    columns = torch.arange(ids.shape[1], device=ids.device)
    used = torch.where(mask, columns, 1).amax(dim=1, keepdim=True)  # (B, 1); at least one, so that none is empty
    rows, row_of = torch.where(columns < used, ids, -1).unique(dim=0, return_inverse=True)  # sorted; (B', T), (B,)
    shared = shared_tok(rows)[:, None]  # (B', 1)
    own = (rows >= 0) & (columns >= shared)  # (B', T)
    number = own.flatten().cumsum(0).view(own.shape) - 1
    # The row that has a row's token at a column as its own: the last one up to it that shares less than the column.
    owner = torch.where(columns >= shared, torch.arange(len(rows), device=ids.device)[:, None], 0).cummax(dim=0).values
    token_at = number.gather(0, owner)  # (B', T)
    row, column = own.nonzero(as_tuple=True)  # (N,), (N,)
    of_batch, predicted = mask.nonzero(as_tuple=True)
    keep, source = token_at[row_of[of_batch], predicted - 1].unique(return_inverse=True)
    attention = token_at, config.num_attention_heads, config.sliding_window
    return PrefixTree(
        ids=rows[own][None],
        positions=column[None],
        keep=keep[None],
        source=source,
        used=int(used.max()),
        tiles=make_tiles(row, column, *attention),
        kept_tiles=make_tiles(row[keep], column[keep], *attention),
    )


def shared_tok(rows: Tensor) -> Tensor:
    """How many tokens each row shares with the one before it. Shapes: rows (B, T) int64, -1 in padding -> (B,)."""
    same = (rows[1:] == rows[:-1]) & (rows[1:] >= 0)
    return torch.cat([rows.new_zeros(1), same.int().cumprod(dim=1).sum(dim=1)])
