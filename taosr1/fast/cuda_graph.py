"""One token for every row in flight: as it stands, or on a GPU recorded once as a CUDA graph and replayed.

A decode step is some thousand small kernels, and a GPU finishes most of them sooner than Python can ask for the next. A graph asks for
all of them at once. It repeats exactly what was recorded, at the same addresses: so the step reads and writes tensors that stay in place,
and a change in who is in flight needs a new recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from taosr1.fast.shared_prefix_cache import ConcatCache
from taosr1.fast.static_cache import StaticCache
from taosr1.model.decoder import Decoder
from taosr1.model.kv_cache import Cache


def can_record(model: Decoder, caches: Sequence[Cache]) -> bool:
    """Whether steps of these caches can be recorded: on a GPU, with shapes and addresses that stay. The plain product of experts waits for
    their sizes, which no graph may do."""
    return not model.config.num_experts and all(isinstance(part, StaticCache) and part.column.is_cuda for part in caches)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """What is recorded may not run on the default stream. One for all recordings: each stream keeps a workspace."""
    return torch.cuda.Stream(device)


class DecodeStep:
    """The rows of some caches, one token at a time.

    last: (M,) int64, each reply's newest token; going: (M,) bool, whether it still writes. Both are updated in place.
    choose: (logits (R, V), going=) -> the next tokens (M,) and who goes on (M,).
    representatives: (R,) int64, the reply whose token each row reads; None: M is R, and each has its own row.
    """

    def __init__(self, model: Decoder, caches: Sequence[Cache], last: Tensor, going: Tensor, choose: Callable, representatives: Tensor | None = None) -> None:
        self.model, self.caches, self.last, self.going, self.choose, self.representatives = model, list(caches), last, going, choose, representatives
        self.cache = self.caches[0] if len(self.caches) == 1 else ConcatCache(self.caches)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.ran = False

    def __call__(self) -> None:
        if not self.ran or not can_record(self.model, self.caches):
            self._run()  # which also loads all kernels, for the recording that comes next
            self.ran = True
        else:
            self.model.check_positions(self.cache.used + 1)  # a graph does not ask
            if self.graph is None:
                self._record()
            self._replay()
        self.cache.advance(1)

    def _run(self) -> None:
        read = self.last if self.representatives is None else self.last[self.representatives]
        hidden = self.model.hidden(read[:, None], cache=self.cache)  # (R, 1, C)
        last, going = self.choose(self.model.head(hidden[:, 0]).float(), going=self.going)
        self.last.copy_(last)
        self.going.copy_(going)

    def _record(self) -> None:
        self.model.prepare(max(part.longest + part.capacity for part in self.caches))
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
