"""Replies from the decoder: KV-cached sampling and pass@N."""
