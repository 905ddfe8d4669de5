"""Sample replies with a KV cache: each distinct prompt is prefilled once for all its samples.

Small pure steps (`prefill`, `choose_tokens`) and one driver (`generate`). Rows are prompt-major: row p * samples + g is
sample g of prompt p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from taosr1.model.cache import KVCache
from taosr1.model.decoder import Decoder

CACHE_BYTES = 4 * 2**30  # of keys and values; while rows are copied into another cache there are two
LOGITS_AT_ONCE = 2**26  # numbers; choosing tokens takes a few tensors of that size
MOST_ROWS = 1024  # more rows make no model faster
COMPACT_BELOW = 0.75  # finished rows leave the batch once fewer than this share of its rows is alive


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
    """How many rows of so many tokens are decoded at once: bounded by the memory of the cache and of the logits.

    The samples of one prompt stay together, even where they are more.
    """
    config = model.config
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * next(model.parameters()).element_size()
    return max(1, min(MOST_ROWS, CACHE_BYTES // (length * token_bytes), LOGITS_AT_ONCE // config.vocab_size))


@torch.no_grad()
def prefill(model: Decoder, prompts: Sequence[Sequence[int]], capacity: int) -> tuple[torch.Tensor, KVCache]:
    """Run the prompts once. Returns the logits (P, V) of the first reply token and a cache holding the prompts."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    width = int(lengths.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    cache = KVCache(model.config, len(prompts), max(capacity, width), next(model.parameters()).dtype, device)
    hidden = model.hidden(ids.to(device), cache=cache)  # (P, T, C)
    cache.lengths.copy_(lengths)
    last = hidden[torch.arange(len(prompts), device=device), lengths - 1]  # (P, C): only these positions meet the head
    return model.head(last).float(), cache


def choose_tokens(logits: torch.Tensor, uniform: torch.Tensor, *, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Draw one token a row by inverting the cumulative distribution at `uniform` in [0, 1); temperature 0 is argmax.

    Shapes: logits (R, V) float32, uniform (R,) -> (R,) int64.
    Choice: inverse CDF instead of `torch.multinomial`, which is many times slower on CPU.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    probs = logits.softmax(-1)
    if top_p < 1.0:
        ordered, index = probs.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the most likely token always stays
        probs = probs.masked_fill(torch.zeros_like(outside).scatter(-1, index, outside), 0.0)
    cdf = probs.cumsum(-1)
    # right=True: a token of probability 0 is never drawn, not even at uniform = 0.
    return torch.searchsorted(cdf, uniform[:, None] * cdf[:, -1:], right=True).clamp_(max=_last_possible(probs))[:, 0]


def _last_possible(probs: torch.Tensor) -> torch.Tensor:
    """Index of the last token with probability > 0, (R, 1): where rounding would step past the end of the CDF."""
    width = probs.shape[-1]
    return width - 1 - (probs > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)


def draw_uniform(prompts: Sequence[Sequence[int]], samples: int, max_new_tokens: int, generator: torch.Generator | None) -> torch.Tensor:
    """The numbers in [0, 1) that `generate` draws its tokens with, (P * samples, max_new_tokens), a row for each reply.

    Several ranks that each answer some of the prompts draw the numbers for all, and so give the replies that one rank would.
    """
    order = torch.tensor(sorted(range(len(prompts)), key=lambda p: len(prompts[p])), dtype=torch.int64)
    uniform = torch.empty(len(prompts), samples, max_new_tokens)
    uniform[order] = torch.rand(len(prompts), samples, max_new_tokens, generator=generator)
    return uniform.flatten(0, 1)


@torch.no_grad()
def draw_first_tokens(
    model: Decoder, prompts: Sequence[Sequence[int]], uniform: torch.Tensor, temperature: float, max_rows: int | None = None
) -> torch.Tensor:
    """Draw only the first token of G replies for every prompt, from one prefill and no decoding. Returns (P, G) int64.

    `uniform` (P, G) are the numbers in [0, 1) to draw with; `max_rows` bounds the rows alive at once, as in `generate`.

    Handed to `generate` as `first_tokens`, they give replies with exactly the distribution that `generate` alone gives:
    the first token is drawn from the same logits either way. Drawing it anew for kept groups would not.
    """
    samples = uniform.shape[1]
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    max_rows = max_rows or rows_that_fit(model, max(map(len, prompts), default=1))
    drawn = torch.zeros(len(prompts), samples, dtype=torch.int64)
    per_batch = max(1, max_rows // samples)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        logits, _ = prefill(model, [prompts[p] for p in chosen], 1)
        logits = logits.repeat_interleave(samples, dim=0)
        draws = uniform[chosen].flatten().to(logits.device)
        tokens = choose_tokens(logits, draws, temperature=temperature, top_k=0, top_p=1.0)
        drawn[chosen] = tokens.view(len(chosen), samples).cpu()
    return drawn


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
    only then lets the kept groups write on. `max_rows` bounds the rows alive at once (None: what `rows_that_fit` says); prompts
    are taken in order of length, results come back in the caller's order. `uniform`: the numbers to draw with, in place of the
    generator's, see `draw_uniform`.

    Log-probs are those of the whole distribution at the sampling temperature (1 where it is 0), without top-k and
    top-p, so they equal what `completion_logp` computes in training; train on replies drawn with top_k=0, top_p=1.

    Raises: ValueError for an empty prompt, settings out of range, or weights that give NaN.
    """
    _check(prompts, samples, max_new_tokens, temperature, top_k, top_p, stop_ids, first_tokens)
    rows = len(prompts) * samples
    result = Rollouts(
        tokens=torch.full((rows, max_new_tokens), stop_ids[0], dtype=torch.int64),
        lengths=torch.zeros(rows, dtype=torch.int64),
        logp=torch.zeros(rows, max_new_tokens),
        finished=torch.zeros(rows, dtype=torch.bool),
    )
    order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
    max_rows = max_rows or rows_that_fit(model, max(map(len, prompts), default=1) + max_new_tokens)
    per_batch = max(1, max_rows // samples)
    if uniform is None:
        # Greedy replies draw nothing: an evaluation must not move the global generator of the run around it.
        uniform = draw_uniform(prompts, samples, max_new_tokens, generator) if temperature else torch.zeros(rows, max_new_tokens)
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        where = (torch.tensor(chosen)[:, None] * samples + torch.arange(samples)).flatten()  # rows of `result`
        forced = None if first_tokens is None else first_tokens.flatten()[where]
        _decode([prompts[p] for p in chosen], samples, model, uniform[where], forced, stop_ids, where, result, temperature, top_k, top_p)
    return result


def _decode(prompts, samples, model, uniform, forced, stop_ids, where, result, temperature, top_k, top_p) -> None:
    """One batch from prefill to the last stop token, written into the rows `where` of `result`."""
    device, longest = next(model.parameters()).device, uniform.shape[1]
    logits, prompt_cache = prefill(model, prompts, max(map(len, prompts)))
    cache = prompt_cache.expand(samples, capacity=max(map(len, prompts)) + longest)
    logits = logits.repeat_interleave(samples, dim=0)  # (R, V): the first token is drawn per row
    stops = torch.tensor(list(stop_ids), device=device)
    alive = torch.arange(len(where), device=device)  # cache row -> row of this batch; shrinks as replies finish
    running = torch.ones(len(where), dtype=torch.bool, device=device)  # of the rows in the cache
    tokens, lengths = result.tokens.new_zeros(len(where), longest).to(device), torch.zeros(len(where), dtype=torch.int64, device=device)
    logp = torch.zeros(len(where), longest, device=device)
    uniform = uniform.to(device)
    for step in range(longest):
        if step == 0 and forced is not None:
            chosen = forced.to(device)
        else:
            chosen = choose_tokens(logits, uniform[alive, step], temperature=temperature, top_k=top_k, top_p=top_p)
        scaled = logits / temperature if temperature else logits
        chosen_logp = scaled.gather(1, chosen[:, None])[:, 0] - scaled.logsumexp(-1)
        live = alive[running]
        tokens[live, step], logp[live, step] = chosen[running], chosen_logp[running]
        lengths[live] = step + 1
        running &= ~torch.isin(chosen, stops)
        left = int(running.sum())
        if not left or step + 1 == longest:
            break
        if left < COMPACT_BELOW * len(running):
            kept = running.nonzero()[:, 0]
            cache, alive, chosen, running = cache.select(kept), alive[kept], chosen[kept], running[kept]
        hidden = model.hidden(chosen[:, None], cache=cache, positions=cache.lengths[:, None])  # (R, 1, C)
        cache.lengths += 1
        logits = model.head(hidden[:, 0]).float()
    if logp.isnan().any():
        raise ValueError("the logits are not finite: the weights hold NaN, or --dtype overflows")
    finished = torch.ones(len(where), dtype=torch.bool, device=device)
    finished[alive[running]] = False
    inside = torch.arange(longest, device=device) < lengths[:, None]
    result.tokens[where] = tokens.masked_fill(~inside, stop_ids[0]).cpu()
    result.lengths[where], result.logp[where], result.finished[where] = lengths.cpu(), logp.cpu(), finished.cpu()


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
