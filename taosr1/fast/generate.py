"""Sample replies with continuous batching; the plain twin is `taosr1.sampling.generate`.

A prompt is prefilled once and its samples read its keys and values without copies. Samples that have produced the same
tokens so far share one row until they diverge. Finished replies leave the batch and waiting prompts take their place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from taosr1.fast.choose_tokens import choose_tokens
from taosr1.fast.cuda_graph import DecodeStep, can_record
from taosr1.fast.decode_batch import DecodeBatch, copies_prompts
from taosr1.fast.kv_cache import Cache, FastKVCache
from taosr1.fast.prefix_groups import runs_of_tokens, tokens_at_once
from taosr1.model.decoder import Decoder
from taosr1.runtime.progress import report
from taosr1.sampling.batching import pad_right
from taosr1.sampling.choose_token import draw_uniform
from taosr1.sampling.generate import check_settings
from taosr1.sampling.rollouts import Rollouts

CACHE_BYTES = 4 * 2**30  # of keys and values; on a GPU an eighth of its memory, if that is more
LOGITS_AT_ONCE = 2**26  # numbers, on a GPU twice as many; choosing tokens takes a few tensors of that size
MOST_ROWS = 1024  # more rows make no model faster
CPU_LAYER_BYTES, FEWEST_ROWS = 32 * 2**20, 64  # see `rows_that_fit`; fewer rows make poor matrix products
COMPACT_BELOW = 0.85  # finished rows leave the batch once fewer than this share of its rows is active
REFILL_FROM = 0.25  # waiting prompts enter once this share of `max_rows` is free: few at a time make poor prefills
COMPACT_RECORDED_BELOW = 0.5  # if a change of rows needs a new CUDA graph of the step
STEPS_UNCHECKED = 4  # there, between two checks of which replies are active


def rows_that_fit(model: Decoder, length: int) -> int:
    """How many rows to decode at once if each has `length` tokens in the cache (its own, and its share of the prompt).

    Bounded by the memory of keys, values and logits. On a CPU more rows make better products until their keys and
    values exceed the processor's cache too far, as every step reads them all. The samples of one prompt stay together,
    even if they are more.
    """
    config, parameter = model.config, next(model.parameters())
    cache_bytes, logits_at_once = CACHE_BYTES, LOGITS_AT_ONCE
    if parameter.is_cuda:
        memory = torch.cuda.get_device_properties(parameter.device).total_memory
        cache_bytes, logits_at_once = max(CACHE_BYTES, memory // 8), 2 * LOGITS_AT_ONCE
    layer_bytes = 2 * config.num_key_value_heads * config.head_dim * parameter.element_size() * length  # of a row
    most = min(MOST_ROWS, cache_bytes // (config.num_hidden_layers * layer_bytes), logits_at_once // config.vocab_size)
    if parameter.device.type == "cpu":
        most = min(most, max(FEWEST_ROWS, CPU_LAYER_BYTES // layer_bytes))
    return max(1, most)


@torch.no_grad()
def prefill(model: Decoder, prompts: Sequence[Sequence[int]], new_tokens: int = 0) -> tuple[Tensor, FastKVCache]:
    """Run the prompts once, in batches. Returns the logits (P, V) of the first reply token, and the prompts' cache.

    new_tokens: how many more tokens of each row the cache has to hold.
    """
    parameter, lengths = next(model.parameters()), [len(prompt) for prompt in prompts]
    cache = FastKVCache(model.config, len(prompts), max(lengths) + new_tokens, parameter.dtype, parameter.device)
    ends, logits = torch.tensor(lengths, device=parameter.device), []
    for first, end in runs_of_tokens(lengths, tokens_at_once(len(lengths) * max(lengths), parameter.device)):
        ids = pad_right(prompts[first:end]).to(parameter.device)
        hidden = model.hidden(ids, cache=cache.slice(first, end), keep=ends[first:end, None] - 1)  # (p, 1, C)
        logits.append(model.head(hidden[:, 0]).float())
        report("prompts read", end, len(lengths))
    cache.lengths.copy_(ends)
    cache.used = max(lengths)
    return torch.cat(logits), cache


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int = 1,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
    generator: torch.Generator | None = None,
    uniform: Tensor | None = None,
    first_tokens: Tensor | None = None,
    max_rows: int | None = None,
) -> Rollouts:
    """`taosr1.sampling.generate.generate`, faster; arguments, results and errors are those.

    max_rows: replies decoded at once (None: `rows_that_fit`). Prompts are taken in order of length; results come back
    in the caller's order.
    """
    model.check_positions(1 + max_new_tokens)
    check_settings(prompts, samples, max_new_tokens, temperature, top_k, top_p, first_tokens)
    rows, device = len(prompts) * samples, next(model.parameters()).device
    if uniform is None:
        # Greedy replies draw nothing: an evaluation must not move the global generator of the run around it.
        needed = (rows, max_new_tokens)
        uniform = draw_uniform(prompts, samples, max_new_tokens, generator) if temperature else torch.zeros(needed)
    rollouts = Rollouts.empty(rows, max_new_tokens, stop_ids, device)
    longest = max(map(len, prompts), default=1)
    share = longest if copies_prompts(model.config, longest + max_new_tokens) else -(-longest // samples)
    max_rows = max_rows or rows_that_fit(model, share + max_new_tokens)
    first_tokens = None if first_tokens is None else first_tokens.flatten().to(device)
    stops = torch.tensor(list(stop_ids), dtype=torch.int64, device=device)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    _Sampling(model, prompts, samples, uniform.to(device), first_tokens, stops, settings, rollouts).run(max_rows)
    return rollouts.checked()


@torch.no_grad()
def decode(model: Decoder, prompt: Sequence[int], max_new_tokens: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """`taosr1.sampling.generate.decode` with this engine's caches: the numbers of `generate`, one reply at a time."""
    model.check_positions(1 + max_new_tokens)
    check_settings([prompt], 1, max_new_tokens, 0, 0, 1.0, None)
    copies = copies_prompts(model.config, len(prompt) + max_new_tokens)
    first, cache = prefill(model, [prompt], max_new_tokens if copies else 0)
    row = torch.zeros(1, dtype=torch.int64, device=first.device)
    cache = DecodeBatch.start(cache, row, row, row, row == 0, max_new_tokens).cache

    @torch.no_grad()
    def step(token: int) -> Tensor:
        hidden = model.hidden(row.new_tensor([[token]]), cache=cache)  # (1, 1, C)
        cache.advance(1)
        return model.head(hidden[:, 0])[0].float()  # (V,)

    return first[0], step


@dataclass(frozen=True)
class _Sampling:
    """One call of `generate`: uniform (R, N), first tokens (R,) or None, settings of `choose_tokens`, its result."""

    model: Decoder
    prompts: Sequence[Sequence[int]]
    samples: int
    uniform: Tensor
    first: Tensor | None
    stops: Tensor
    settings: dict[str, float]
    rollouts: Rollouts

    def run(self, max_rows: int) -> None:
        """Decode up to `max_rows` replies at once; prompts enter where finished replies left."""
        model, samples = self.model, self.samples
        waiting = deque(sorted(range(len(self.prompts)), key=lambda p: len(self.prompts[p])))
        batches: list[DecodeBatch] = []
        step: DecodeStep | None = None  # of the present rows; made anew when they change
        while waiting or batches:
            if batches:
                remaining = torch.stack([batch.counts() for batch in batches]).tolist()  # active rows, replies of each
                if _should_compact(model, batches, remaining):
                    step = None  # with the old caches and all new ones memory would hold everything twice
                    batches = [batch.drop_finished() for batch, (rows, _) in zip(batches, remaining) if rows]
            room = max_rows - sum(len(batch.replies) for batch in batches)
            if waiting and (not batches or room >= max(samples, REFILL_FROM * max_rows)):
                entering = [waiting.popleft() for _ in range(min(len(waiting), max(1, room // samples)))]
                batches.append(self._start(entering))
                step = None
            elif batches:
                step = step or self._step_of(batches)
                for _ in range(_unchecked_steps(model, [batch.cache for batch in batches])):
                    step()
                if any([batch.split_diverged() for batch in batches]):
                    step = None
                report("reply tokens", self.rollouts.settled_tok, self.uniform.numel())

    def _start(self, entering: list[int]) -> DecodeBatch:
        """Prefill the entering prompts, draw the first token of each of their samples, and make them a batch."""
        device, samples = self.uniform.device, self.samples
        prompts, longest = [self.prompts[p] for p in entering], self.uniform.shape[1]
        copies = copies_prompts(self.model.config, max(map(len, prompts)) + longest)
        logits, cache = prefill(self.model, prompts, longest if copies else 0)
        first_rows = torch.tensor(entering, device=device)[:, None] * samples
        replies = (first_rows + torch.arange(samples, device=device)).flatten()
        prompt_of = torch.arange(len(entering), device=device).repeat_interleave(samples)
        active = torch.ones_like(replies, dtype=torch.bool)
        first, active = self._next_tokens(logits, replies, active, prompt_of, self.first)
        return DecodeBatch.start(cache, prompt_of, replies, first, active, longest)

    def _step_of(self, batches: Sequence[DecodeBatch]) -> DecodeStep:
        """The next step of all batches; their `last` and `active` become views of what it updates in place."""
        fields = ("replies", "last", "active")
        replies, last, active = (torch.cat([getattr(batch, name) for batch in batches]) for name in fields)
        sizes = [len(batch.replies) for batch in batches]
        for batch, own_last, own_active in zip(batches, last.split(sizes), active.split(sizes)):
            batch.last, batch.active = own_last, own_active
        row_of = representatives = None
        if any(batch.can_fork for batch in batches):
            first_rows = accumulate((batch.cache.rows for batch in batches), initial=0)
            row_of = torch.cat([batch.row_of + start for batch, start in zip(batches, first_rows)])
            first_replies = accumulate(sizes, initial=0)
            representatives = torch.cat([batch.representatives + start for batch, start in zip(batches, first_replies)])
        choose = partial(self._next_tokens, replies=replies, row_of=row_of)
        return DecodeStep(self.model, [batch.cache for batch in batches], last, active, choose, representatives)

    def _next_tokens(
        self, logits: Tensor, replies: Tensor, active: Tensor, row_of: Tensor | None, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Choose the next token of each reply and write it into the result if the reply is active, without waiting for
        the device.

        Shapes: logits (R, V), replies (M,) int64 rows of the result, active (M,) bool, row_of (M,) as `choose_tokens`;
            given: the tokens of all replies, which are not drawn -> tokens (M,), and which replies are active then.
        """
        rollouts, longest = self.rollouts, self.uniform.shape[1]
        step = rollouts.lengths[replies].clamp(max=longest - 1)  # a finished reply gets a token that is not written
        if given is not None:
            tokens, scaled = given[replies], logits / (self.settings["temperature"] or 1.0)
            logp = scaled[row_of, tokens] - scaled.logsumexp(-1)[row_of]
        else:
            tokens, logp = choose_tokens(logits, self.uniform[replies, step], row_of=row_of, **self.settings)
        rollouts.tokens[replies, step] = torch.where(active, tokens, rollouts.tokens[replies, step])
        rollouts.logp[replies, step] = torch.where(active, logp, rollouts.logp[replies, step])
        rollouts.lengths[replies] += active
        stopped = (tokens[:, None] == self.stops).any(-1)
        rollouts.finished[replies] |= active & stopped
        return tokens, active & ~stopped & (rollouts.lengths[replies] < longest)


def _should_compact(model: Decoder, batches: Sequence[DecodeBatch], remaining: list[list[int]]) -> bool:
    """Whether finished rows and replies should leave now. remaining: active rows and replies of each batch."""
    rows, replies = sum(batch.cache.rows for batch in batches), sum(len(batch.replies) for batch in batches)
    active_rows, active_replies = (sum(column) for column in zip(*remaining))
    # A long row that has finished would still take the next position, which the model may not have.
    full = any(batch.cache.used >= model.config.max_position_embeddings for batch in batches)
    recorded = can_record(model, [batch.cache for batch in batches])
    least = COMPACT_RECORDED_BELOW if recorded else COMPACT_BELOW
    few = active_rows < least * rows or active_replies < least * replies
    return few or full and active_rows < rows or [0, 0] in remaining


def _unchecked_steps(model: Decoder, caches: Sequence[Cache]) -> int:
    """How many steps to run before asking which replies are active: to ask means to wait for the device.

    No row may need a column that its cache does not have, or a position that the model does not have.
    """
    if not can_record(model, caches):
        return 1
    columns = min(cache.capacity - cache.length for cache in caches)
    positions = model.config.max_position_embeddings - max(cache.used for cache in caches)
    return max(1, min(STEPS_UNCHECKED, columns - 1, positions))
