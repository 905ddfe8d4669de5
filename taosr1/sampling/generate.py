"""Sample replies with a KV cache: prefill every prompt once, repeat its keys for its samples, decode token by token.

Rows of the result are prompt-major: row p * samples + g is sample g of prompt p. `taosr1/fast/generate.py` computes the
same replies faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taosr1.model.decoder import Decoder
from taosr1.model.kv_cache import KVCache
from taosr1.runtime.progress import report
from taosr1.sampling.batching import pad_right
from taosr1.sampling.choose_token import choose_token, draw_uniform
from taosr1.sampling.rollouts import Rollouts

PROMPTS_AT_ONCE = 128  # bounds the memory of keys and values


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
) -> Rollouts:
    """Sample `samples` replies to every prompt, until a stop token (none: never) or `max_new_tokens` tokens.

    Log-probs are those of the whole distribution at the sampling temperature (1 where it is 0), without top-k and
    top-p, so they equal what `completion_logp` computes in training; train on replies drawn with top_k=0, top_p=1.

    uniform: (P * samples, max_new_tokens), the numbers to draw with (`draw_uniform`) instead of the generator's.
    first_tokens: (P * samples,), forces the first token of each reply: difficulty can be measured on labels drawn from
        one prefill (`label_probabilities`), and only the groups that are kept are decoded.
    Raises: ValueError for an empty prompt, settings out of range, too many positions, or weights that give NaN.
    """
    model.check_positions(1 + max_new_tokens)
    check_settings(prompts, samples, max_new_tokens, temperature, top_k, top_p, first_tokens)
    device = next(model.parameters()).device
    if uniform is None:
        # Greedy replies draw nothing: an evaluation must not move the global generator of the run around it.
        needed = (len(prompts) * samples, max_new_tokens)
        uniform = draw_uniform(prompts, samples, max_new_tokens, generator) if temperature else torch.zeros(needed)
    rollouts = Rollouts.empty(len(prompts) * samples, max_new_tokens, stop_ids, device)
    stops = torch.tensor(list(stop_ids), dtype=torch.int64, device=device)
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        logits, cache = prefill(model, prompts[start : start + PROMPTS_AT_ONCE], max_new_tokens)
        logits, cache = logits.repeat_interleave(samples, dim=0), cache.repeat_interleave(samples)
        active = torch.arange(len(logits), device=device) + start * samples  # rows of `rollouts` that are unfinished
        for step in range(max_new_tokens):
            draws = uniform[active.cpu(), step].to(device)
            token, logp = choose_token(logits, draws, temperature=temperature, top_k=top_k, top_p=top_p)
            if step == 0 and first_tokens is not None:
                token = first_tokens.flatten().to(device)[active]
                logp = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, token[:, None])[:, 0]
            rollouts.tokens[active, step], rollouts.logp[active, step] = token, logp
            rollouts.lengths[active] += 1
            stopped = torch.isin(token, stops)
            rollouts.finished[active[stopped]] = True
            report("reply tokens", rollouts.settled_tok, uniform.numel())
            if bool(stopped.all()) or step + 1 == max_new_tokens:
                break
            if bool(stopped.any()):
                active, token, cache = active[~stopped], token[~stopped], cache.select(~stopped)
            logits = model(token[:, None], cache=cache)[:, -1].float()  # (rows still active, V)
            cache.lengths += 1
    return rollouts.checked()


def prefill(model: Decoder, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[Tensor, KVCache]:
    """Run the prompts once. Returns the logits (P, V) of the first reply token, and the cache with room for replies."""
    weight = model.model.embed_tokens.weight
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=weight.device)
    longest = int(lengths.max())
    cache = KVCache(model.config, len(prompts), longest + max_new_tokens, weight.dtype, weight.device)
    hidden = model.hidden(pad_right(prompts).to(weight.device), cache=cache)  # (P, T, C)
    cache.lengths += lengths
    last = hidden[torch.arange(len(prompts), device=weight.device), lengths - 1]  # (P, C)
    return model.head(last).float(), cache


@torch.no_grad()
def decode(model: Decoder, prompt: Sequence[int], max_new_tokens: int) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Run a prompt once, to be continued token by token: the replies that greedy `generate` gives.

    Returns: the logits (V,) float32 of the first reply token, and a function that takes the token that was chosen and
        gives the logits of the next one. It may be called `max_new_tokens` - 1 times.
    Raises: ValueError as `generate`.
    """
    model.check_positions(1 + max_new_tokens)
    check_settings([prompt], 1, max_new_tokens, 0, 0, 1.0, None)
    first, cache = prefill(model, [prompt], max_new_tokens)

    @torch.no_grad()
    def step(token: int) -> Tensor:
        logits = model(torch.tensor([[token]], device=first.device), cache=cache)[0, -1].float()  # (V,)
        cache.lengths += 1
        return logits

    return first[0], step


def check_settings(prompts, samples, max_new_tokens, temperature, top_k, top_p, first_tokens) -> None:
    """Of both engines. Raises: ValueError naming every setting of `generate` that is out of range."""
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    problems = [f"prompt {empty[0]} is empty"] if empty else []
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            problems.append(f"{name} is {value}, expected at least 1")
    if not 0 <= temperature < float("inf"):
        problems.append(f"temperature is {temperature}, expected 0 (greedy) or more")
    if top_k < 0:
        problems.append(f"top_k is {top_k}, expected 0 (off) or more")
    if not 0 < top_p <= 1:
        problems.append(f"top_p is {top_p}, expected more than 0 and at most 1")
    if first_tokens is not None and first_tokens.numel() != len(prompts) * samples:
        shape = tuple(first_tokens.shape)
        problems.append(f"first_tokens are {shape}, expected one for each of {len(prompts)} x {samples} replies")
    if problems:
        raise ValueError("generate: " + "; ".join(problems))
