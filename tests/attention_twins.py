"""What our attention kernels compute (`varlen.prefix_attention`, `static_cache.decode_attention`), in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from taosr1.fast.static_cache import StaticCache
from taosr1.fast.varlen import AttentionRanges
from taosr1.model.attention import attention


def prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor, prefix_value: Tensor, ranges: AttentionRanges
) -> Tensor:
    """One query after another."""
    outs, first_keys, last_keys = [], ranges.first_keys.tolist(), ranges.last_keys.tolist()
    for first, end, prefix, prefix_end in ranges.tiles.tolist():
        for number in range(first, end):
            own = slice(first_keys[number], last_keys[number] + 1)
            keys = torch.cat([prefix_key[prefix:prefix_end], key[own]]).float()  # (S, K, D)
            values = torch.cat([prefix_value[prefix:prefix_end], value[own]]).float()
            grouped = query[number].view(keys.shape[1], -1, keys.shape[2]).float()  # (K, H / K, D)
            probs = (torch.einsum("kgd,skd->kgs", grouped, keys) * query.shape[-1] ** -0.5).softmax(-1)
            outs.append(torch.einsum("kgs,skd->kgd", probs, values).flatten(0, 1).to(query.dtype))
    return torch.stack(outs)


def decode_attention(query: Tensor, key: Tensor, value: Tensor, cache: StaticCache, layer: int) -> Tensor:
    """With a copy of the prefix for every row."""
    rows = torch.arange(cache.rows, device=query.device)
    own = cache.columns(rows, torch.arange(cache.length + 1, device=query.device))  # (R, t), the newest token last
    prefix = torch.arange(cache.longest, device=query.device)
    mask = torch.cat([prefix < cache.start[:, None], torch.ones_like(own, dtype=torch.bool)], 1)  # (R, S + t)
    columns = torch.cat([prefix.expand(cache.rows, -1), own], 1)
    keys_and_values = []
    for new, cached in ((key, cache.keys[layer]), (value, cache.values[layer])):
        cached[cache.prefix_of, :, own[:, -1]] = new.to(cached.dtype)
        keys_and_values.append(cached[cache.prefix_of[:, None], :, columns].transpose(1, 2))  # (R, K, S + t, D)
    query = query.to(keys_and_values[0].dtype)
    return attention(query[:, None], *keys_and_values, mask[:, None, None]).view_as(query)
