"""Weights for serving on a CPU, laid out once as oneDNN multiplies them, which it otherwise does again at every product.

The fewer rows a product has, the more that is: a third of the time or more at one row, a fifth at 64 (a decode step), a twentieth at 1,000 (a prefill); little
where all weights fit the processor's cache. Their values stay the same, so digests and files do; sums round in another order. Training, which changes its weights
at every step, keeps them as they are; GRPO packs a copy to sample from, at every step anew (`DistributedModel.sampling_model`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from taosr1.fast.onednn_linear import OneDNNLinear, onednn_product
from taosr1.model.decoder import Decoder
from taosr1.model.lora import LoraLinear

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class PrepackedLinear(nn.Module):
    """A Linear for inference. Its weight is in oneDNN's layout, and in no other; `state_dict` still shows it as (out, in)."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return onednn_product(x, self.packed, self.bias)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.packed.to_dense()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias


class PrepackedTiedHead(PrepackedLinear):
    """A head whose weights are the embedding's: it has them once more, in oneDNN's layout, and no name for them in `state_dict`."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        pass


@lru_cache
def can_prepack(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have such products: bfloat16 wants AVX-512 or the like, and older ones refuse it."""
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(2, 2, dtype=dtype))
        onednn_product(torch.ones(2, 2, dtype=dtype), weight, None)
        return True
    except (AttributeError, RuntimeError):
        return False


def prepack(model: Decoder, *, decodes: bool = False) -> Decoder:
    """Replace the model's linear layers by packed ones, in place, without a second copy; returns the model, which can no longer be trained.

    decodes: also a head that is the embedding too, as a second copy of it. Decoding meets the head at every token, and of a small model with a
    large vocabulary it is much of the work; scoring meets it once a product.

    Left as they are: adapters, 8-bit layers, stacked experts. Nothing happens on a GPU, and where torch, the processor or the
    weights' type has no such layout.
    """
    weight = model.model.embed_tokens.weight
    if not torch.backends.mkldnn.enabled or weight.device.type != "cpu" or weight.dtype not in PACKED_DTYPES or not can_prepack(weight.dtype):
        return model
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is OneDNNLinear and not isinstance(module, LoraLinear):
                setattr(module, name, PrepackedLinear(child))
    if decodes and model.lm_head is None:
        vocabulary, width = weight.shape
        head = nn.Linear(width, vocabulary, bias=False, device="meta")
        head.weight = weight
        model.lm_head = PrepackedTiedHead(head)
    return model
