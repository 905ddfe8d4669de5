"""The decoder: plain PyTorch modules, a KV cache, the tokenizer, and Hugging Face folders in and out."""
