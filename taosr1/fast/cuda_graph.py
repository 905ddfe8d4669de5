"""One token for every row of a batch: run directly, or on a GPU recorded once as a CUDA graph and replayed.

A decode step is some thousand small kernels, and a GPU finishes most of them sooner than Python can launch the next. A
graph launches all of them at once. It repeats exactly what was recorded, at the same addresses: so the step reads and
writes tensors that stay in place, and a change of rows needs a new recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from taosr1.fast.kv_cache import Cache, ConcatCache
from taosr1.fast.static_cache import StaticCache
from taosr1.model.decoder import Decoder


def can_record(model: Decoder, caches: Sequence[Cache]) -> bool:
    """Whether steps of these caches can be recorded: on a GPU, with shapes and addresses that stay.

    The product of experts waits for their sizes on the host, which no graph may do.
    """
    static = all(isinstance(cache, StaticCache) and cache.keys.is_cuda for cache in caches)
    return static and not model.config.num_experts


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Recording may not use the default stream. One stream for all recordings: each keeps a workspace."""
    return torch.cuda.Stream(device)


class DecodeStep:
    """The rows of some caches, one token at a time.

    last: (M,) int64, each reply's newest token; active: (M,) bool. Both are updated in place.
    choose: (logits (R, V), active=) -> the next tokens (M,) and which replies are active after them (M,).
    representatives: (R,) int64, the reply that supplies each row's input token; None: M is R, one row a reply.
    """

    def __init__(
        self,
        model: Decoder,
        caches: Sequence[Cache],
        last: Tensor,
        active: Tensor,
        choose: Callable,
        representatives: Tensor | None = None,
    ) -> None:
        self.model, self.caches, self.last, self.active = model, list(caches), last, active
        self.choose, self.representatives = choose, representatives
        self.cache = self.caches[0] if len(self.caches) == 1 else ConcatCache(self.caches)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.ran = False

    def __call__(self) -> None:
        if not self.ran or not can_record(self.model, self.caches):
            self._run()  # which also loads all kernels, for the recording that comes next
            self.ran = True
        else:
            self.model.check_positions(self.cache.used + 1)  # a graph cannot check
            if self.graph is None:
                self._record()
            self._replay()
        self.cache.advance(1)

    def _run(self) -> None:
        tokens = self.last if self.representatives is None else self.last[self.representatives]
        hidden = self.model.hidden(tokens[:, None], cache=self.cache)  # (R, 1, C)
        last, active = self.choose(self.model.head(hidden[:, 0]).float(), active=self.active)
        self.last.copy_(last)
        self.active.copy_(active)

    def _record(self) -> None:
        self.model.prepare_positions(max(cache.longest + cache.capacity for cache in self.caches))
        with torch.cuda.device(self.last.device):
            graph, stream = torch.cuda.CUDAGraph(), side_stream(self.last.device)
            # Not torch.cuda.graph: it empties the allocator's cache each time, and rows come and go often.
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                graph.capture_begin()
                try:
                    self._run()
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph

    def _replay(self) -> None:
        with torch.cuda.device(self.last.device):
            self.graph.replay()
