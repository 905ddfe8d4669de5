"""Which model this is: one number of everything in it that decides what it answers."""

from __future__ import annotations

import hashlib

import torch

from taosr1.model.decoder import Decoder
from taosr1.model.lora import adapters
from taosr1.model.tokenizer import Tokenizer


def model_digest(model: Decoder, tokenizer: Tokenizer, *asked: object) -> str:
    """SHA-256 of the weights as they were loaded, the decoder's shape, its adapters' settings, the tokenizer, and how it is asked.

    Of what was loaded and not of a folder: the same for a run, its checkpoint, a copy elsewhere and a hub id, whatever their paths and
    dates, and another one as soon as a single weight differs. Reads every weight once (1 to 2 GB/s).
    """
    digest = hashlib.sha256(repr((model.config, [layer.lora for layer in adapters(model)[:1]], asked)).encode())
    for path, module in model.named_modules(remove_duplicate=False):
        part: dict[str, torch.Tensor] = {}  # module by module: packed weights are laid out anew to be read
        module._save_to_state_dict(part, f"{path}." if path else "", keep_vars=False)
        for name, tensor in part.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    digest.update(repr((tokenizer.eos_ids, tokenizer.label_ids, tokenizer.chat_template, tokenizer.fingerprint())).encode())
    return digest.hexdigest()
