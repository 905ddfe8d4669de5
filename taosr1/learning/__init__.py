"""How the decoder improves: log-probs, losses, rewards, selection, one loop, checkpoints."""
