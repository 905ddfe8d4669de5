"""Fused attention kernels, and attention of rows that share a prefix; the plain twin is `taosr1.model.attention`."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MATH_KERNEL_UP_TO = 384  # tokens


def fused_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`taosr1.model.attention.attention` by PyTorch's fused kernels; mask None is causal attention.

    Shapes: query (B, T, H, D), key and value (B, K, S, D), mask (B, 1, T, S) or None -> (B, T, H * D). With one query
        a row (T = 1) None means that it attends to all S keys, as its own is the last.
    """
    rows, length, heads, size = query.shape
    kv_heads = key.shape[1]
    if length == 1:
        # The query heads that share a key head become the T axis, so no key is copied.
        grouped = query.view(rows, kv_heads, heads // kv_heads, size)
        return F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(rows, 1, -1)
    query, causal, shared = query.transpose(1, 2), mask is None, heads != kv_heads
    if shared and not causal and value.device.type == "cuda":
        # There the kernel that takes a mask and keeps no (T, T) matrix needs a key for every query head.
        key, value = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (key, value))
        shared = False
    # On a CPU the fused bfloat16 kernel's backward is four times slower than the math kernel's, which keeps a (T, T)
    # matrix for every head: good for short rows. Training runs under autocast, and so do the log-probs of the reference
    # and the old policy, which need no gradient but have to be measured by the same kernel.
    half = value.dtype != torch.float32 and torch.is_autocast_enabled("cpu")
    use_math = length <= MATH_KERNEL_UP_TO and value.device.type == "cpu" and half
    with sdpa_kernel(SDPBackend.MATH) if use_math else nullcontext():
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=shared)
    return out.transpose(1, 2).reshape(rows, length, -1)


def one_token_attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> Tensor:
    """`fused_attention` of one token a row in two products; the fused kernel takes three times as long on a CPU.

    Shapes: query (R, 1, H, D), key (R, K, S or more, D), value (R, K, S, D), hidden (R, 1, 1, s <= S) bool or None:
        which of the first columns are masked -> (R, 1, H * D). Columns of key beyond value's are ignored.
    """
    rows, kv_heads, seen, size = value.shape
    scores = ((query * size**-0.5).view(rows, kv_heads, -1, size) @ key.transpose(-1, -2))[..., :seen]  # (R, K, n, S)
    if hidden is not None:
        scores[..., : hidden.shape[-1]].masked_fill_(hidden, -torch.inf)
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (probs @ value).view(rows, 1, -1)


class Prefixes(NamedTuple):
    """P prefixes in one layer: key, value (P, K, S, D), mask (P, S) bool, or None without padding."""

    key: Tensor
    value: Tensor
    mask: Tensor | None


def copied_prefix_attention(
    query: Tensor, prefixes: Prefixes, key: Tensor, value: Tensor, mask: Tensor | None, prefix_of: Tensor
) -> Tensor:
    """Attention of each row to its prefix and its own tokens, with a copy of the prefix for every row.

    Shapes: query (R, T, H, D). key, value (R, K, t, D): the rows' own tokens, mask (R or 1, 1, T, t) bool or None (all
        are attended to). prefix_of (R,): each row's prefix -> (R, T, H * D).
    """
    rows, length = query.shape[:2]
    prefix_mask = prefixes.mask
    if prefix_mask is None:
        prefix_mask = torch.ones(len(prefixes.key), prefixes.key.shape[2], dtype=torch.bool, device=query.device)
    if mask is None:
        mask = torch.ones(1, 1, length, key.shape[2], dtype=torch.bool, device=query.device)
    of_prefix = prefix_mask[prefix_of][:, None, None].expand(rows, 1, length, -1)
    keys, values = torch.cat([prefixes.key[prefix_of], key], 2), torch.cat([prefixes.value[prefix_of], value], 2)
    return fused_attention(query, keys, values, torch.cat([of_prefix, mask.expand(rows, 1, length, -1)], -1))


def shared_attention(
    query: Tensor, prefixes: Prefixes, key: Tensor, value: Tensor, mask: Tensor | None, grouping: PrefixGrouping
) -> Tensor:
    """`copied_prefix_attention` without the copies: all rows of a prefix multiply its keys in one product.

    The scores over the prefix and over a row's own tokens are two products and one softmax. Arguments as there, with a
    `PrefixGrouping` in place of prefix_of; columns of key beyond value's t are ignored, where reading them costs less
    than to cut them off.
    """
    rows, length, heads, size = query.shape
    kv_heads, prefix, own = key.shape[1], prefixes.key.shape[2], value.shape[2]
    # The query heads that share a key head stand together: (R, K, n * T, D), n = H / K.
    query = (query * size**-0.5).view(rows, length, kv_heads, -1, size)
    query = query.permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, -1, size)
    over_own = (query @ key.transpose(-1, -2))[..., :own]  # (R, K, n * T, t)
    if mask is not None:
        by_query = over_own.view(rows, kv_heads, -1, length, own)
        over_own = by_query.masked_fill_(~mask[:, :, None], -torch.inf).view_as(over_own)
    over_prefix = grouping.to_prefixes(query) @ prefixes.key.transpose(-1, -2)  # (P, K, M * n * T, S)
    if prefixes.mask is not None:
        over_prefix = over_prefix.masked_fill_(~prefixes.mask[:, None, None], -torch.inf)
    scores = torch.cat([over_prefix, grouping.to_prefixes(over_own)], -1)
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    out = grouping.to_rows(probs[..., :prefix] @ prefixes.value) + grouping.to_rows(probs[..., prefix:]) @ value
    return out.view(rows, kv_heads, -1, length, size).permute(0, 3, 1, 2, 4).reshape(rows, length, -1)


class PrefixGrouping:
    """R rows arranged as P prefixes x M places, M the most rows of a prefix: one product for all rows of a prefix.

    prefix_of: (R,) int64. Where every prefix has equally many rows, in its order, nothing has to be moved (`full`).
    """

    def __init__(self, prefix_of: Tensor, prefixes: int) -> None:
        counts = torch.bincount(prefix_of, minlength=prefixes)  # (P,)
        self.prefix_of, self.prefixes, self.places = prefix_of, prefixes, int(counts.max())
        self.full = bool((counts == self.places).all() and (prefix_of.diff() >= 0).all())
        if not self.full:
            prefix, rows = prefix_of.sort(stable=True)
            within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[prefix]
            # (R,): each row's index in the flattened grid
            self.place_of = torch.empty_like(rows).index_copy_(0, rows, prefix * self.places + within)

    def to_prefixes(self, x: Tensor) -> Tensor:
        """(R, K, q, W) -> (P, K, M * q, W); places without a row are 0."""
        if not self.full:
            x = x.new_zeros(self.prefixes * self.places, *x.shape[1:]).index_copy_(0, self.place_of, x)
        return x.view(self.prefixes, self.places, *x.shape[1:]).transpose(1, 2).flatten(2, 3)

    def to_rows(self, x: Tensor) -> Tensor:
        """(P, K, M * q, W) -> (R, K, q, W)."""
        x = x.view(self.prefixes, x.shape[1], self.places, -1, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return x if self.full else x[self.place_of]
