"""Without a GPU, Triton interprets our kernels. It reads that when it is imported, which other packages may do: so it is said here, before any test."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
