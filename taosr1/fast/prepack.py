"""Weights for inference on a CPU, stored once in the layout in which oneDNN multiplies them ("prepacked").

Otherwise oneDNN rearranges them at every product, which costs the more the fewer rows the product has: a third of the
time or more at one row, a fifth at 64 (a decode step), a twentieth at 1,000 (a prefill); little if all weights fit into
the processor's cache. Values, digests and files stay the same; sums round in another order. Training changes its
weights at every step and keeps them; GRPO prepacks a copy to sample from (`DistributedModel.sampling_model`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taosr1.fast.onednn_linear import OneDNNLinear, has_onednn, onednn_product
from taosr1.model.decoder import Decoder
from taosr1.model.lora import LoraLinear

PREPACK_DTYPES = (torch.float32, torch.bfloat16)


class PrepackedLinear(nn.Module):
    """A linear layer for inference, its weight in oneDNN's layout alone; `state_dict` still shows it as (out, in)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.prepacked = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return onednn_product(x, self.prepacked, self.bias)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.prepacked.to_dense()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias


class PrepackedTiedHead(PrepackedLinear):
    """A head that is the embedding too: a second, prepacked copy of its weights, without a name in `state_dict`."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        pass


def prepack(model: Decoder, *, decodes: bool = False) -> Decoder:
    """Replace the linear layers by prepacked ones, in place; returns the model, which can no longer be trained.

    decodes: also a head that is the embedding too, as a second copy of it. Decoding multiplies it at every token, and
        for a small model with a large vocabulary that is much of the work; scoring does so once a product.

    Adapters, 8-bit layers and stacked experts stay as they are. Nothing happens on a GPU, nor where torch, the
    processor or the weights' type has no such layout.
    """
    weight = model.model.embed_tokens.weight
    can = torch.backends.mkldnn.enabled and weight.device.type == "cpu" and weight.dtype in PREPACK_DTYPES
    if not (can and has_onednn(weight.dtype)):
        return model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is OneDNNLinear and not isinstance(module, LoraLinear):
                setattr(module, name, PrepackedLinear(child))
    if decodes and model.lm_head is None:
        head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        head.weight = weight
        model.lm_head = PrepackedTiedHead(head)
    return model
