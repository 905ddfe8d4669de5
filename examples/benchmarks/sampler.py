"""Sampling beside transformers' `generate`: the same weights, prompts and settings, one process, by turns.

    python examples/benchmarks/sampler.py --threads 1                               # everything: about forty minutes
    python examples/benchmarks/sampler.py --parts equal --cases tiny-float32        # about a minute

equal:  8 prompts of 192 tokens x 8 samples x 64 new tokens, nothing stops early. For every one of --cases.
ragged: 512 prompts of 96 to 192 tokens x 8 samples of at most 64 tokens; ids that stop a reply are chosen at random, as
        many as leave half of all tokens. transformers gets its prompts sorted by length, padded on the left, in batches
        of 8, 16 and 32. It takes minutes a side, so it is measured --ragged-repeats times. First of --cases only.
trained: 80 prompts of the embedded shop x 8 replies of the bundled thinker, which end by themselves. Its samples have
        much in common, which we compute once; transformers gets its prompts sorted, 8 and 80 at once. The first of
        --cases gives the dtype.
growth: ours alone, first of --cases only. Seconds at 1 to 32 samples a prompt; peak memory at 64 to 1024 waiting
        prompts with at most 512 rows at once: only the replies themselves grow.

transformers' modes: "generate" copies each prompt for each of its samples and computes all copies; "static" does the
same with a cache of fixed size (no compiling); "expanded" computes each prompt once, copies its cache and decodes token
by token, which is no setting but a loop of a user's own. Each mode is tried once with either implementation of
attention, sdpa and eager; the faster one is measured. All draw from the whole distribution at temperature 1.

Before anything is timed: in float32 greedy replies must equal those of every mode, and the log-probs of sampled replies
transformers' own for the same tokens, to 1e-4. In bfloat16 rounding alone makes single log-probs of a real model differ
by 0.2, so there both sides' are compared with transformers' in float32: ours may be `NOISE` times as far from them as
its own bfloat16 is (root mean square). Useful work and the roofline are those of `common.useful_flops` and
`common.gemm_flops`; every reply counts by itself, also where we compute several at once. Except for `trained` weights
are random, so that replies differ from their first token on.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

import torch

from examples.benchmarks import common
from examples.benchmarks.sampler_peers import PEERS, Work, in_batches
from taosr1.fast.generate import generate
from taosr1.fast.prepack import prepack
from taosr1.judge_model import BUNDLED, BUNDLED_FOLDER, load_judge
from taosr1.runtime.cli import option, parse_config
from taosr1.runtime.signals import run_main
from taosr1.synthetic.shop import read_pool

PARTS = ("equal", "ragged", "trained", "growth")
CASES = ("tiny-float32", "tiny-bfloat16", "small-bfloat16", "small-float32")
BATCHES = (8, 16, 32)  # prompts that transformers gets at once in the ragged part
TOLERANCE = 1e-4  # of a log-prob in float32
NOISE = 2.0  # bfloat16: our distance from float32 over transformers'; measured are 0.8 to 1.4
ROWS_ALIVE = 512  # in the memory part of growth


@dataclass(frozen=True)
class Config:
    parts: str = option(",".join(PARTS), "what to measure, comma-separated")
    cases: str = option(",".join(CASES), "shapes and dtypes, comma-separated")
    threads: int = option(1, "CPU threads")
    repeats: int = option(5, "measurements of each side")
    ragged_repeats: int = option(1, "measurements of each side in the ragged part")
    prompts: int = option(512, "prompts of the ragged part")
    memory: bool = option(False, "also the peak memory of every side of the equal part, each in a process of its own")
    out: str = option("", "JSON file to write")
    one: str = option("", "internal: measure the peak memory of only this, as SIDE/CASE/PROMPTS")
    folder: str = option("", "internal: the model's folder")

    def __post_init__(self) -> None:
        common.check_names(self, PARTS, CASES, threads=1, repeats=1, ragged_repeats=1, prompts=1)


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    torch.set_num_threads(config.threads)
    if config.one:
        print(json.dumps(peak_of(*config.one.split("/"), config)))
        return []
    return common.run_cases(config, RUN, first_only=("ragged", "trained", "growth"), decodes=True)


# --- The parts --------------------------------------------------------------------------------------------------------
def equal(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    work = Work(common.random_ids([192] * 8, model.config.vocab_size))
    print(f"equal, {case}: 8 prompts x 192 tokens x 8 samples x 64 new tokens; {compare(model, theirs, work, case)}")
    sides = {"ours": partial(ours, model, work)}
    sides |= {" ".join(best): attended(*best, theirs, work) for best in best_attention(PEERS, theirs, work)}
    replies = ours(model, work)  # warm-up; the other sides have had theirs
    assert all(len(reply) == work.new_tokens for reply in replies), "a reply stopped early"
    seconds = common.by_turns(sides, config.repeats)
    rows = common.timing_rows(seconds, work_flops(model, work, replies), common.gemm_flops(common.dtype_of(case)))
    for row in rows if config.memory else ():
        row |= fresh_peak(row["side"], case, 8, folder, config)
    return rows


def ragged(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    work = ragged_work(model, config.prompts)
    print(f"ragged, {case}: {config.prompts} prompts x 96 to 192 tokens x 8 samples; {len(work.stop_ids)} stop ids; "
          f"{compare(model, theirs, work, case)}")  # fmt: skip
    return until_they_stop(model, theirs, work, case, BATCHES, config.ragged_repeats)


def trained(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    dtype = common.dtype_of(case)
    judge, theirs = load_judge(BUNDLED, dtype=case.split("-")[1]), common.load_transformers(BUNDLED_FOLDER, dtype)
    work = Work(judge.prompts(read_pool("labelled")[:80]), stop_ids=tuple(judge.tokenizer.eos_ids))
    equality = compare(judge.model, theirs, work, case)
    print(f"trained, {case.split('-')[1]}: 80 prompts of the embedded shop x 8 samples; {equality}")
    return until_they_stop(judge.model, theirs, work, case, (8, 80), config.repeats)


def until_they_stop(model, theirs, work: Work, case: str, sizes: tuple[int, ...], repeats: int) -> list[dict]:
    """Both sides on replies that end by themselves, transformers with so many prompts at once."""
    lengths: dict[str, list[int]] = {}

    def measured(name: str, run, *arguments) -> None:
        lengths[name] = [len(reply) for reply in run(*arguments)]

    few = replace(work, prompts=work.prompts[:8])
    ours(model, few)  # warm-up
    sides = {"ours": partial(measured, "ours", ours, model, work)}
    for mode, attention in best_attention(("generate", "expanded"), theirs, few):
        for size in sizes:
            name = f"{mode} {attention} x {size}"
            sides[name] = partial(
                measured, name, in_batches, partial(common.attending, attention, PEERS[mode]), theirs, work, size
            )
    seconds = common.by_turns(sides, repeats)
    rows = common.timing_rows(
        seconds, work_flops(model, work, lengths["ours"]), common.gemm_flops(common.dtype_of(case))
    )
    for row in rows:
        row["mean_tokens"] = statistics.fmean(lengths[row["side"]])
    print("  mean length of a reply: " + ", ".join(f"{row['side']} {row['mean_tokens']:.1f}" for row in rows))
    return rows


def growth(model, theirs, case: str, folder: Path, config: Config) -> list[dict]:
    rows = []
    print(f"growth, {case}: ours alone")
    for samples in (1, 2, 4, 8, 16, 32):
        work = Work(common.random_ids([192] * 8, model.config.vocab_size), samples=samples)
        replies = ours(model, work)  # warm-up
        seconds = statistics.median(common.by_turns({"ours": partial(ours, model, work)}, config.repeats)["ours"])
        share = work_flops(model, work, replies) / seconds / common.gemm_flops(common.dtype_of(case))
        each = 1e3 * seconds / len(replies)
        rows.append({"samples": samples, "median_s": seconds, "ms_per_reply": each, "of_roofline": share})
        line = f"  {samples:5} samples a prompt {seconds:8.3f} s  {each:7.2f} ms a reply  {share:.2f} of the roofline"
        print(line, flush=True)
    for waiting in (64, 256, 1024):
        rows.append({"waiting": waiting, **fresh_peak("ours", case, waiting, folder, config)})
    return rows


def best_attention(modes: Iterable[str], theirs, work: Work) -> list[tuple[str, str]]:
    """Each mode with the implementation of attention that is faster on this work, after one try of each."""
    names = [(mode, attention) for mode in modes for attention in common.ATTENTIONS]
    seconds = common.by_turns({name: attended(*name, theirs, work) for name in names}, 1)
    print("  tried: " + ", ".join(f"{' '.join(name)} {found:.2f} s" for name, (found,) in seconds.items()), flush=True)
    return [
        min(((mode, attention) for attention in common.ATTENTIONS), key=lambda name: seconds[name]) for mode in modes
    ]


def attended(mode: str, attention: str, theirs, work: Work) -> partial:
    return partial(common.attending, attention, PEERS[mode], theirs, work)


def fresh_peak(side: str, case: str, prompts: int, folder: Path, config: Config) -> dict:
    arguments = ("--one", f"{side}/{case}/{prompts}", "--folder", folder, "--threads", config.threads)
    found = common.in_fresh_process(__file__, *arguments, threads=config.threads)
    peak, results = found["peak_mib"], found["results_mib"]
    line = f"  {side:22} {prompts:5} prompts: peak {peak:.0f} MiB above the imports, results {results:.1f}"
    print(line, flush=True)
    return found


RUN = {"equal": equal, "ragged": ragged, "trained": trained, "growth": growth}


def peak_of(side: str, case: str, prompts: str, config: Config) -> dict:
    """Peak memory of one side in this fresh process, on the equal part's work or on `prompts` waiting prompts."""
    dtype = common.dtype_of(case)
    if side != "ours":
        from transformers import Qwen3ForCausalLM  # noqa: F401 (before the base is taken)
    base = common.forget_peak()
    if side == "ours":
        model = prepack(common.load_fast(config.folder, dtype), decodes=True)
    else:
        model = common.load_transformers(config.folder, dtype)
    waiting = int(prompts)
    work = Work(common.random_ids([192] * waiting, model.config.vocab_size), new_tokens=64 if waiting == 8 else 16)
    if side == "ours":
        ours(model, work, max_rows=ROWS_ALIVE)
    else:
        attended(*side.split(), model, work)()
    # Of each new token: the id, the number drawn for it and its log-prob, 8 + 4 + 4 bytes.
    results = waiting * work.samples * work.new_tokens * 16
    return {"peak_mib": (common.peak_bytes() - base) / 2**20, "results_mib": results / 2**20}


# --- The work ---------------------------------------------------------------------------------------------------------
def ragged_work(model, prompts: int) -> Work:
    """Prompts of all lengths, and as many random stop ids as leave half of the tokens.

    Random weights make all tokens about equally likely, so one of `count` stop ids comes with probability p = count /
    vocab_size, and the mean length of a reply of at most N tokens is (1 - (1 - p)^N) / p.
    """
    generator, vocab_size = torch.Generator().manual_seed(0), model.config.vocab_size
    lengths = torch.randint(96, 193, (prompts,), generator=generator).tolist()
    work = Work(common.random_ids(lengths, vocab_size))
    mean = {
        count: (1 - (1 - count / vocab_size) ** work.new_tokens) * vocab_size / count for count in range(1, vocab_size)
    }
    count = min(mean, key=lambda count: abs(mean[count] - work.new_tokens / 2))
    return replace(work, stop_ids=tuple(torch.randperm(vocab_size, generator=generator)[:count].tolist()))


def work_flops(model, work: Work, replies: list) -> float:
    """Each prompt once, with the output of its last token; each reply's tokens but the last, with all outputs.

    replies: or their lengths.
    """
    lengths = [reply if isinstance(reply, int) else len(reply) for reply in replies]
    total = 0
    for number, prompt in enumerate(work.prompts):
        total += common.useful_flops(model.config, 0, len(prompt), 1)
        for length in lengths[number * work.samples : (number + 1) * work.samples]:
            total += common.useful_flops(model.config, len(prompt), length - 1, length - 1)
    return total


# --- The sides: replies of all prompts, prompt by prompt --------------------------------------------------------------
def rollouts(model, work: Work, temperature: float = 1.0, **settings):
    stop_ids = work.stop_ids or [model.config.vocab_size]  # an id that is never drawn
    generator = torch.Generator().manual_seed(0)
    settings |= {"samples": work.samples, "max_new_tokens": work.new_tokens, "temperature": temperature}
    return generate(model, work.prompts, stop_ids=stop_ids, generator=generator, **settings)


def ours(model, work: Work, **settings) -> list[list[int]]:
    return rollouts(model, work, **settings).replies()


# --- Are they the same? -----------------------------------------------------------------------------------------------
def compare(model, theirs, work: Work, case: str) -> str:
    """Three prompts' greedy replies against every mode (float32), and the log-probs of their sampled replies.

    Ends the program where they differ.
    """
    few = replace(work, prompts=work.prompts[:3], samples=1)
    exact = case.split("-")[1] == "float32"
    if exact:
        greedy = ours(model, few, temperature=0.0)
        for name, attention in product(PEERS, common.ATTENTIONS):
            if (found := common.attending(attention, PEERS[name], theirs, few, 0.0)) != greedy:
                raise SystemExit(
                    f"{case}: greedy replies differ from those of {name} {attention}: {greedy} against {found}"
                )
    few = replace(few, samples=work.samples)
    sampled = rollouts(model, few)
    replies = sampled.replies()
    logp = torch.cat([row[: len(reply)] for row, reply in zip(sampled.logp, replies)])
    expected = their_logp(theirs, few, replies)
    if exact:
        worst = float((logp - expected).abs().max())
        if not worst <= TOLERANCE:
            raise SystemExit(
                f"{case}: a log-prob differs by {worst:.2g} from that of transformers, allowed are {TOLERANCE}"
            )
        return f"equal: greedy replies, log-probs to {worst:.0e}"
    truth = their_logp(common.load_transformers(theirs.name_or_path, torch.float32), few, replies)
    our_noise, their_noise = (float((found - truth).square().mean().sqrt()) for found in (logp, expected))
    noise = f"log-probs are {our_noise:.2g} from float32's (root mean square), those of transformers {their_noise:.2g}"
    if not our_noise <= NOISE * their_noise:
        raise SystemExit(f"{case}: {noise}; allowed are {NOISE} times as much")
    return noise


@torch.no_grad()
def their_logp(theirs, work: Work, replies: list[list[int]]) -> torch.Tensor:
    """What transformers finds for the tokens of all replies, end to end, each reply in one forward pass."""
    found = []
    for row, reply in enumerate(replies):
        prompt = work.prompts[row // work.samples]
        logits = theirs(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1 : -1].float()  # (N, V)
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0])
    return torch.cat(found)


if __name__ == "__main__":
    run_main(main)
