"""The decoder in plain PyTorch, its KV cache and tokenizer, and Hugging Face folders in and out (`model.io`)."""

from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import load_decoder, load_pretrained, save_pretrained
from taosr1.model.tokenizer import Tokenizer

__all__ = ["Decoder", "DecoderConfig", "Tokenizer", "load_decoder", "load_pretrained", "save_pretrained"]
