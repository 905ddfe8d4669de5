"""Test sets of single abilities: `drafts.py` proposes minimal pairs, `blocks.py` checks them and makes the pools."""
