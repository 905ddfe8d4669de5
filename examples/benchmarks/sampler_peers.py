"""How transformers samples in the benchmark `sampler.py`: three modes, in batches of prompts, replies as lists."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch


@dataclass(frozen=True)
class Work:
    """What every side is asked for. `stop_ids` may be empty: then every reply has `new_tokens` tokens."""

    prompts: list[list[int]]
    samples: int = 8
    new_tokens: int = 64
    stop_ids: tuple[int, ...] = ()


def hf_generate(model, work: Work, temperature: float = 1.0, **mode) -> list[list[int]]:
    """Plain `generate`, which repeats each prompt `samples` times before it computes anything."""
    ids, real = left_padded(work.prompts)
    samples = work.samples if temperature else 1  # it refuses several greedy replies, which would be equal
    settings = hf_settings(work, temperature, num_return_sequences=samples, **mode)
    found = model.generate(ids, attention_mask=real, generation_config=settings)
    return cut(found[:, ids.shape[1] :], work)


@torch.no_grad()
def hf_expanded(model, work: Work, temperature: float = 1.0) -> list[list[int]]:
    """Each prompt is computed once and its cache repeated; then token by token, until every row has stopped."""
    from transformers import DynamicCache

    ids, real = left_padded(work.prompts)
    cache, padded, stops = DynamicCache(config=model.config), not real.all(), torch.tensor(work.stop_ids)

    def last_logits(ids: torch.Tensor) -> torch.Tensor:
        mask = real if padded else None
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        return model(ids, **given, logits_to_keep=1).logits[:, -1]

    positions = (real.cumsum(1) - 1).clamp(min=0)
    logits = last_logits(ids)
    cache.batch_repeat_interleave(work.samples)
    logits, real, positions = (x.repeat_interleave(work.samples, 0) for x in (logits, real, positions[:, -1:]))
    running, tokens = torch.ones(len(real), 1, dtype=torch.bool), []
    while True:
        probs = (logits.float() / (temperature or 1)).softmax(-1)
        tokens.append(torch.multinomial(probs, 1) if temperature else logits.argmax(-1, keepdim=True))  # (R, 1)
        running &= ~torch.isin(tokens[-1], stops)
        if len(tokens) == work.new_tokens or not running.any():
            return cut(torch.cat(tokens, 1), work)
        real, positions = torch.cat([real, torch.ones_like(real[:, :1])], 1), positions + 1
        logits = last_logits(tokens[-1])


PEERS = {
    "generate": hf_generate,
    "static": partial(hf_generate, cache_implementation="static", disable_compile=True),
    "expanded": hf_expanded,
}


def in_batches(run, model, work: Work, size: int) -> list[list[int]]:
    """A side on `size` prompts at a time, sorted by length; replies in the caller's order."""
    order = sorted(range(len(work.prompts)), key=lambda number: len(work.prompts[number]))
    replies: dict[int, list] = {}
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        found = run(model, replace(work, prompts=[work.prompts[number] for number in chosen]))
        replies |= {
            number: found[place * work.samples : (place + 1) * work.samples] for place, number in enumerate(chosen)
        }
    return [reply for number in range(len(order)) for reply in replies[number]]


def hf_settings(work: Work, temperature: float, **mode):
    from transformers import GenerationConfig

    settings = dict(max_new_tokens=work.new_tokens, eos_token_id=list(work.stop_ids) or None, pad_token_id=0)
    settings |= dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else {}
    return GenerationConfig(**settings, **mode)


def left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (P, T) and a mask (P, T) that is 1 at real tokens."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    real = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, real


def cut(tokens: torch.Tensor, work: Work) -> list[list[int]]:
    """Rows as lists that end with their first stop id."""
    stops = set(work.stop_ids)
    ends = [next((place + 1 for place, token in enumerate(row) if token in stops), len(row)) for row in tokens.tolist()]
    return [row[:end] for row, end in zip(tokens.tolist(), ends)]
