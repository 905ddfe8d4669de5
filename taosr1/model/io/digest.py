"""A digest of a loaded model: one text for everything in it that decides its replies."""

from __future__ import annotations

import hashlib

import torch

from taosr1.model.decoder import Decoder
from taosr1.model.lora import adapters
from taosr1.model.tokenizer import Tokenizer


def model_digest(model: Decoder, tokenizer: Tokenizer, *settings: object) -> str:
    """SHA-256 of the loaded weights, the decoder's config, its adapters' settings, the tokenizer and `settings`.

    It depends on what was loaded and not on the folder: equal for a run, its checkpoint, a copy and a hub id, whatever
    their paths and dates, and different as soon as one weight is. Reads every weight once (1 to 2 GB/s).
    settings: further objects with a stable repr, such as the prompt's config.
    """
    digest = hashlib.sha256(repr((model.config, [layer.lora for layer in adapters(model)[:1]], settings)).encode())
    for path, module in model.named_modules(remove_duplicate=False):
        state: dict[str, torch.Tensor] = {}  # of one module at a time: prepacked weights are unpacked to be read
        module._save_to_state_dict(state, f"{path}." if path else "", keep_vars=False)
        for name, tensor in state.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    described = (tokenizer.eos_ids, tokenizer.label_ids, tokenizer.chat_template, tokenizer.fingerprint())
    digest.update(repr(described).encode())
    return digest.hexdigest()
