"""Sample replies with a KV cache: each prompt is prefilled once for all its samples, which read its keys and values where they are,
and samples that have said the same so far are one row until they part.

Small pure steps (`prefill`, `choose_tokens`) and one driver (`generate`). Rows of the result are prompt-major: row p * samples + g is
sample g of prompt p.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import accumulate

import torch
import torch.nn.functional as F

from taosr1.fast.cuda_graph import DecodeStep, can_record
from taosr1.fast.decode_batch import DecodeBatch, copies_prompts
from taosr1.fast.fused_ops import block_sums
from taosr1.fast.prefix_groups import pad_right, runs_of_tokens, tokens_at_once
from taosr1.model.decoder import Decoder
from taosr1.model.kv_cache import Cache, KVCache

CACHE_BYTES = 4 * 2**30  # of keys and values; on a GPU an eighth of its memory, if that is more
LOGITS_AT_ONCE = 2**26  # numbers, on a GPU twice as many; choosing tokens takes a few tensors of that size
MOST_ROWS = 1024  # more rows make no model faster
CPU_LAYER_BYTES, FEWEST_ROWS = 32 * 2**20, 64  # see `rows_that_fit`; fewer rows make poor matrix products
COMPACT_BELOW = 0.85  # finished rows leave the batch once fewer than this share of its rows is alive
REFILL_FROM = 0.25  # waiting prompts enter once this share of `max_rows` is free: few at a time make poor prefills
COMPACT_RECORDED_BELOW = 0.5  # where a change of rows needs a new recording of the step
STEPS_UNWATCHED = 4  # there, between two looks at who is still going
BLOCK = 64  # tokens; see `invert_cdf`


@dataclass(frozen=True)
class Rollouts:
    """Sampled replies of P prompts x G samples, R = P * G rows, N = the longest reply allowed.

    tokens: (R, N) int64; a row's first `lengths` entries are the reply, its stop token included; the rest is a stop id.
    lengths: (R,) int64, at least 1.
    logp: (R, N) float32, log-prob of each token at the sampling temperature, 0 beyond the reply.
    finished: (R,) bool, False where the reply was cut at N tokens.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    logp: torch.Tensor
    finished: torch.Tensor

    def replies(self) -> list[list[int]]:
        """The replies as plain lists of ids, stop token included where there is one."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist())]


def rows_that_fit(model: Decoder, length: int) -> int:
    """How many rows are decoded at once, if each has keys and values of so many tokens (what it writes, and its share of the prompt): bounded
    by the memory of those and of the logits.

    On a CPU more rows make better products until their keys and values are too far beyond the processor's cache, as every step reads them
    all. The samples of one prompt stay together, even where they are more.
    """
    config, parameter = model.config, next(model.parameters())
    cache_bytes, logits_at_once = CACHE_BYTES, LOGITS_AT_ONCE
    if parameter.is_cuda:
        cache_bytes, logits_at_once = max(CACHE_BYTES, torch.cuda.get_device_properties(parameter.device).total_memory // 8), 2 * LOGITS_AT_ONCE
    layer_bytes = 2 * config.num_key_value_heads * config.head_dim * parameter.element_size() * length  # of a row
    most = min(MOST_ROWS, cache_bytes // (config.num_hidden_layers * layer_bytes), logits_at_once // config.vocab_size)
    if parameter.device.type == "cpu":
        most = min(most, max(FEWEST_ROWS, CPU_LAYER_BYTES // layer_bytes))
    return max(1, most)


@torch.no_grad()
def prefill(model: Decoder, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, KVCache]:
    """Run the prompts once, as many at a time as is fast. Returns the logits (P, V) of the first reply token and a cache holding the prompts."""
    parameter, lengths = next(model.parameters()), [len(prompt) for prompt in prompts]
    cache = KVCache(model.config, len(prompts), max(lengths), parameter.dtype, parameter.device)
    ends, logits = torch.tensor(lengths, device=parameter.device), []
    for first, end in runs_of_tokens(lengths, tokens_at_once(len(lengths) * max(lengths), parameter.device)):
        ids = pad_right(prompts[first:end]).to(parameter.device)
        hidden = model.hidden(ids, cache=cache.part(first, end), read=ends[first:end, None] - 1)  # (p, 1, C): nobody reads the others
        logits.append(model.head(hidden[:, 0]).float())
    cache.lengths.copy_(ends)
    cache.used = max(lengths)
    return torch.cat(logits), cache


def choose_tokens(
    logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_k: int, top_p: float, row_of: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a reply by inverting the cumulative distribution at `uniform` in [0, 1); temperature 0 is argmax.

    Shapes: logits (R, V) float32, uniform (M,), row_of (M,) int64, from which row each reply draws (None: each has its own) -> tokens (M,) int64
    and their log-probs (M,) at the temperature, top-k and top-p left aside.
    Choice: inverse CDF instead of `torch.multinomial`, which is many times slower on CPU.
    """
    if temperature == 0:
        tokens, logp = most_likely(logits)
        return (tokens, logp) if row_of is None else (tokens[row_of], logp[row_of])
    if temperature != 1:
        logits = logits / temperature
    top = logits.amax(-1, keepdim=True)
    possible = logits
    if top_k and top_k < logits.shape[-1]:
        possible = possible.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1.0:
        ordered, index = possible.softmax(-1).sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the most likely token always stays
        possible = possible.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), -torch.inf)
    tokens, total = invert_cdf(possible, top, uniform, row_of)
    if possible is not logits:  # log-probs are those of the whole distribution
        total = (logits - top).exp_().sum(-1)
    whole = top[:, 0] + total.log()
    if row_of is None:
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - whole
    return tokens, logits[row_of, tokens] - whole[row_of]


def invert_cdf(
    logits: torch.Tensor, top: torch.Tensor, uniform: torch.Tensor, row_of: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token at which the running sum of a row's weights e^(logit - top) exceeds `uniform` times their total; never one of weight 0.

    The block of BLOCK tokens is found first, by the sums of the blocks, and then the token in it: the weights of a whole vocabulary are
    not kept, and their running sum, a chain of V dependent additions, is never built (`tests/sampling` has it, as the plain twin).
    Shapes: logits (R, V) float32, -inf where nothing shall be drawn; top (R, 1); uniform, row_of (M,) -> tokens (M,) int64, totals (R,).
    """
    blocks = _in_blocks(logits)
    sums = block_sums(blocks, top)  # (R, V / BLOCK)
    ends = sums.cumsum(-1)
    totals = ends[:, -1]
    if row_of is None:
        row_of = torch.arange(len(logits), device=logits.device)
    else:
        sums, ends, top = sums[row_of], ends[row_of], top[row_of]  # (M, V / BLOCK), and (M, 1)
    target = uniform[:, None] * ends[:, -1:]
    # right=True: a weight of 0 is never drawn, not even at uniform = 0.
    block = torch.searchsorted(ends, target, right=True).clamp_(max=_last_possible(sums))  # (M, 1)
    inside = (blocks[row_of, block[:, 0]] - top).exp()  # (M, BLOCK)
    target = (target - ends.gather(1, block) + sums.gather(1, block)).clamp_(min=0)  # rounding may fall below the block
    token = torch.searchsorted(inside.cumsum(-1), target, right=True).clamp_(max=_last_possible(inside))
    return (block * BLOCK + token)[:, 0].clamp_(max=logits.shape[1] - 1), totals  # clamped: NaN points nowhere


def most_likely(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token with a row's largest logit, and its log-prob. In two steps, because on a CPU to find where a maximum stands takes many
    times as long as to find it. Shapes: (R, V) float32 -> (R,) int64, (R,)."""
    blocks, top = _in_blocks(logits), logits.amax(-1, keepdim=True)
    block = blocks.amax(-1).argmax(-1)
    inside = blocks[torch.arange(len(logits), device=logits.device), block].argmax(-1)
    return (block * BLOCK + inside).clamp_(max=logits.shape[1] - 1), -block_sums(blocks, top).sum(-1).log()


def _in_blocks(logits: torch.Tensor) -> torch.Tensor:
    """(R, V) -> (R, N, BLOCK), the last block filled up with -inf."""
    if logits.shape[1] % BLOCK:
        logits = F.pad(logits, (0, -logits.shape[1] % BLOCK), value=-torch.inf)
    return logits.unflatten(1, (-1, BLOCK))


def _last_possible(weights: torch.Tensor) -> torch.Tensor:
    """Index of the last weight > 0, (R, 1): where rounding would step past the end of the CDF."""
    return weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)


def draw_uniform(prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, generator: torch.Generator | None) -> torch.Tensor:
    """The numbers in [0, 1) that `generate` draws its tokens with, (P * samples, max_new_tokens), a row for each reply.

    Several ranks that each answer some of the prompts draw the numbers for all, and so give the replies that one rank would.
    """
    order = torch.tensor(sorted(range(len(prompts)), key=lambda p: len(prompts[p])), dtype=torch.int64)
    uniform = torch.empty(len(prompts), samples, max_new_tokens)
    uniform[order] = torch.rand(len(prompts), samples, max_new_tokens, generator=generator)
    return uniform.flatten(0, 1)


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
    stop_ids: Sequence[int],
    generator: torch.Generator | None = None,
    first_tokens: torch.Tensor | None = None,
    max_rows: int | None = None,
    uniform: torch.Tensor | None = None,
) -> Rollouts:
    """Sample `samples` replies for every prompt.

    `first_tokens` (P, samples) or (P * samples,) forces the first token of each reply: difficulty-by-prefill draws the labels itself and
    only then lets the kept groups write on. `max_rows` bounds the replies in flight at once, and so the rows (None: what `rows_that_fit` says);
    prompts are taken in order of length, results come back in the caller's order. `uniform`: the numbers to draw with, in place of the
    generator's, see `draw_uniform`.

    Log-probs are those of the whole distribution at the sampling temperature (1 where it is 0), without top-k and
    top-p, so they equal what `completion_logp` computes in training; train on replies drawn with top_k=0, top_p=1.

    Raises: ValueError for an empty prompt, settings out of range, or weights that give NaN.
    """
    _check(prompts, samples, max_new_tokens, temperature, top_k, top_p, stop_ids, first_tokens)
    rows, device = len(prompts) * samples, next(model.parameters()).device
    if uniform is None:
        # Greedy replies draw nothing: an evaluation must not move the global generator of the run around it.
        uniform = draw_uniform(prompts, samples, max_new_tokens, generator) if temperature else torch.zeros(rows, max_new_tokens)
    tokens = torch.full((rows, max_new_tokens), stop_ids[0], dtype=torch.int64, device=device)
    result = Rollouts(
        tokens=tokens,
        lengths=torch.zeros(rows, dtype=torch.int64, device=device),
        logp=torch.zeros(rows, max_new_tokens, device=device),
        finished=torch.zeros(rows, dtype=torch.bool, device=device),
    )
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    draws = _Draws(uniform.to(device), None if first_tokens is None else first_tokens.flatten().to(device), torch.tensor(list(stop_ids), device=device), settings)
    longest = max(map(len, prompts), default=1)
    share = longest if copies_prompts(model.config, longest + max_new_tokens) else -(-longest // samples)
    max_rows = max_rows or rows_that_fit(model, share + max_new_tokens)
    _decode(model, prompts, samples, max_rows, draws, result)
    if result.logp.isnan().any():
        raise ValueError("the logits are not finite: the weights hold NaN, or --dtype overflows")
    return Rollouts(*(getattr(result, field.name).cpu() for field in fields(result)))


@dataclass(frozen=True)
class _Draws:
    """How tokens are chosen: uniform (R, N), first tokens (R,) or None, stop ids, and the settings of `choose_tokens`."""

    uniform: torch.Tensor
    first: torch.Tensor | None
    stops: torch.Tensor
    settings: dict[str, float]

    def next_tokens(
        self,
        logits: torch.Tensor,
        replies: torch.Tensor,
        going: torch.Tensor,
        result: Rollouts,
        *,
        row_of: torch.Tensor | None = None,
        first: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the next token of these replies (rows of `result`), write it down for those that are still going, and say who is after it.

        first: these are their first tokens. Nothing here waits for the device.
        Shapes: logits (R, V), replies (M,) int64, going (M,) bool, row_of (M,) as in `choose_tokens` -> tokens (M,), going (M,).
        """
        longest = self.uniform.shape[1]
        step = result.lengths[replies].clamp(max=longest - 1)  # a reply that has ended may be asked again; nobody reads its answer
        if first and self.first is not None:
            tokens, scaled = self.first[replies], logits / (self.settings["temperature"] or 1.0)
            row_of = torch.arange(len(replies), device=tokens.device) if row_of is None else row_of
            logp = scaled[row_of, tokens] - scaled.logsumexp(-1)[row_of]
        else:
            tokens, logp = choose_tokens(logits, self.uniform[replies, step], row_of=row_of, **self.settings)
        result.tokens[replies, step] = torch.where(going, tokens, result.tokens[replies, step])
        result.logp[replies, step] = torch.where(going, logp, result.logp[replies, step])
        result.lengths[replies] += going
        stopped = (tokens[:, None] == self.stops).any(-1)
        result.finished[replies] |= going & stopped
        return tokens, going & ~stopped & (result.lengths[replies] < longest)


def _decode(model: Decoder, prompts: Sequence[Sequence[int]], samples: int, max_rows: int, draws: _Draws, result: Rollouts) -> None:
    """Continuous batching: up to `max_rows` replies are in flight; those that have ended leave, and the next prompts enter in their place."""
    waiting = deque(sorted(range(len(prompts)), key=lambda p: len(prompts[p])))
    device, longest = result.tokens.device, result.tokens.shape[1]
    waves: list[DecodeBatch] = []
    step: DecodeStep | None = None  # of the rows in flight, until others are
    while waiting or waves:
        left = torch.stack([wave.left() for wave in waves]).tolist() if waves else []  # of every wave: rows, replies
        rows, replies = sum(wave.cache.rows for wave in waves), sum(len(wave.replies) for wave in waves)
        # A long row that has ended would still take the next position, which the model may not have.
        at_limit = any(wave.cache.used >= model.config.max_position_embeddings for wave in waves) and sum(alive for alive, _ in left) < rows
        least = COMPACT_RECORDED_BELOW if can_record(model, [wave.cache for wave in waves]) else COMPACT_BELOW
        few = sum(alive for alive, _ in left) < least * rows or sum(going for _, going in left) < least * replies
        if few or at_limit or [0, 0] in left:
            step = None  # and what it recorded: with the old caches and all new ones, memory would hold everything twice
            waves = [wave.leave() for wave, (alive, _) in zip(waves, left) if alive]
        room = max_rows - sum(len(wave.replies) for wave in waves)
        if waiting and (not waves or room >= max(samples, REFILL_FROM * max_rows)):
            entering = [waiting.popleft() for _ in range(min(len(waiting), max(1, room // samples)))]
            logits, prompt_cache = prefill(model, [prompts[p] for p in entering])
            new = (torch.tensor(entering, device=device)[:, None] * samples + torch.arange(samples, device=device)).flatten()
            prompt_of = torch.arange(len(entering), device=device).repeat_interleave(samples)
            first, going = draws.next_tokens(logits, new, torch.ones_like(new, dtype=torch.bool), result, row_of=prompt_of, first=True)
            waves.append(DecodeBatch.of(prompt_cache, prompt_of, new, first, going, longest))
            del logits, prompt_cache  # the wave lets go of the prompts that it has no row for any longer
            step = None
        elif waves:
            step = step or _step_of(model, waves, draws, result)
            for _ in range(_steps_unwatched(model, [wave.cache for wave in waves])):
                step()
            if any([wave.part() for wave in waves]):
                step = None


def _step_of(model: Decoder, waves: Sequence[DecodeBatch], draws: _Draws, result: Rollouts) -> DecodeStep:
    """The next step of all waves, whose `last` and `going` become parts of what it updates in place."""
    replies, last, going = (torch.cat([getattr(wave, name) for wave in waves]) for name in ("replies", "last", "going"))
    sizes = [len(wave.replies) for wave in waves]
    for wave, of_last, of_going in zip(waves, last.split(sizes), going.split(sizes)):
        wave.last, wave.going = of_last, of_going
    row_of = representatives = None
    if any(wave.parts for wave in waves):
        row_of = torch.cat([wave.row_of + start for wave, start in zip(waves, accumulate((wave.cache.rows for wave in waves), initial=0))])
        representatives = torch.cat([wave.representatives + start for wave, start in zip(waves, accumulate(sizes, initial=0))])
    choose = partial(draws.next_tokens, replies=replies, result=result, row_of=row_of)
    return DecodeStep(model, [wave.cache for wave in waves], last, going, choose, representatives)


def _steps_unwatched(model: Decoder, caches: Sequence[Cache]) -> int:
    """How many steps may come before somebody looks who is still going: to look means to wait for the device, which then waits for Python.
    No row may be asked for a column that its cache has not, or for a position that the model has not."""
    if not can_record(model, caches):
        return 1
    columns = min(cache.capacity - cache.grown for cache in caches)
    positions = model.config.max_position_embeddings - max(cache.used for cache in caches)
    return max(1, min(STEPS_UNWATCHED, columns - 1, positions))


def _check(prompts, samples, max_new_tokens, temperature, top_k, top_p, stop_ids, first_tokens) -> None:
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    problems = [f"prompt {empty[0]} is empty"] if empty else []
    if samples < 1:
        problems.append(f"samples is {samples}, expected at least 1")
    if max_new_tokens < 1:
        problems.append(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if not 0 <= temperature < float("inf"):
        problems.append(f"temperature is {temperature}, expected 0 (greedy) or more")
    if top_k < 0:
        problems.append(f"top_k is {top_k}, expected 0 (off) or more")
    if not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p}, expected more than 0 and at most 1")
    if not stop_ids:
        problems.append("stop_ids is empty, expected at least one id")
    if first_tokens is not None and first_tokens.numel() != len(prompts) * samples:
        problems.append(f"first_tokens are {tuple(first_tokens.shape)}, expected one for each of {len(prompts)} x {samples} replies")
    if problems:
        raise ValueError("generate: " + "; ".join(problems))
