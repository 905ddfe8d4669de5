"""One token for every row in flight: as it stands, or on a GPU recorded once as a CUDA graph and replayed.

A decode step is some thousand small kernels, and a GPU finishes most of them sooner than Python can ask for the next. A graph asks for
all of them at once. It repeats exactly what was recorded, at the same addresses: so the step reads and writes tensors that stay in place,
and a change in who is in flight needs a new recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taosr1.model.cache import Cache
from taosr1.model.decode_cache import DecodeCache
from taosr1.model.decoder import Decoder
from taosr1.model.shared_cache import SideBySide


def can_record(model: Decoder, caches: Sequence[Cache]) -> bool:
    """Whether steps of these caches can be recorded: on a GPU, with shapes and addresses that stay. The plain product of experts waits for
    their sizes, which no graph may do."""
    return not model.config.num_experts and all(isinstance(cache, DecodeCache) and cache.column.is_cuda for cache in caches)


class DecodeStep:
    """The rows of some caches, one token at a time.

    last: (R,) int64, each row's newest token; going: (R,) bool, whether it still writes. Both are updated in place.
    choose: (logits (R, V), going=) -> the next tokens (R,) and who goes on (R,).
    """

    def __init__(self, model: Decoder, caches: Sequence[Cache], last: Tensor, going: Tensor, choose: Callable) -> None:
        self.model, self.caches, self.last, self.going, self.choose = model, list(caches), last, going, choose
        self.cache = self.caches[0] if len(self.caches) == 1 else SideBySide(self.caches)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.ran: list[int] | None = None  # how far the caches reached when the step last ran as it stands

    def __call__(self) -> None:
        reach = [cache.reach for cache in self.caches] if can_record(self.model, self.caches) else None
        if reach is None or reach != self.ran:
            self._run()  # which also loads all kernels, for the recording that comes next
            self.ran, self.graph = reach, None
        else:
            if self.graph is None:
                self._record()
            self.graph.replay()
        self.cache.advance(1)

    def _run(self) -> None:
        hidden = self.model.hidden(self.last[:, None], cache=self.cache)  # (R, 1, C)
        last, going = self.choose(self.model.head(hidden[:, 0]).float(), going=self.going)
        self.last.copy_(last)
        self.going.copy_(going)

    def _record(self) -> None:
        self.model.prepare(max(cache.longest + cache.capacity for cache in self.caches))
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
        # Not torch.cuda.graph: it empties the allocator's cache each time, and rows come and go often.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            graph.capture_begin()
            self._run()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph
