"""Mixture of experts (Qwen3-MoE): a router sends every token to a few of many small MLPs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taosr1.model.config import DecoderConfig


class Experts(nn.Module):
    """E MLPs whose matrices are stacked: (E, out, in)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        experts, inner, width = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Shapes: tokens (N, C) sorted by expert; ends (E,) int32, one past each expert's last token -> (N, C)."""
        sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
        outputs = []
        for x, gate, up, down in zip(tokens.split(sizes), self.gate_proj, self.up_proj, self.down_proj):
            outputs.append(F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down))
        return torch.cat(outputs)


class MixtureOfExperts(nn.Module):
    """Every token goes to the k experts with the highest router probabilities, which also weight their outputs."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.chosen, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)  # the router
        self.experts = Experts(config)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (N, k) and expert indices (N, k) of tokens (N, C). The softmax over all experts comes first."""
        logits = self.gate(tokens)
        probs = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights, experts = probs.topk(self.chosen, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(logits.dtype), experts

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        weights, experts = self.route(tokens)
        by_expert, order = experts.flatten().sort(stable=True)  # (N * k,): the assignments sorted by expert
        numbers = torch.arange(self.gate.out_features, device=x.device)
        ends = torch.searchsorted(by_expert, numbers, right=True, out_int32=True)  # (E,)
        # index_select, not tokens[...]: a token is repeated for its experts, and the gradient of indexing is added up
        # in no fixed order.
        out = self.experts(tokens.index_select(0, order // self.chosen), ends)[order.argsort()]  # (N * k, C)
        return (out.view(*experts.shape, -1) * weights[..., None]).sum(1).view_as(x)
