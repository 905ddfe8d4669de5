"""Hugging Face folders in and out: config, weights, shards, adapters, digests."""
