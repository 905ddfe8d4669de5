"""Stage 3, GRPO with difficulty-based dynamic sampling: the judge learns from grades alone, no reasons needed.

    python train/grpo.py                                                   # the thinker, on grades that SFT has not seen
    python train/grpo.py --balance none --out runs/natural                 # natural shares: what balance is worth
    python train/grpo.py --model runs/post-dpo --difficulty prefill --out runs/post-grpo       # the paper's third stage

Every step samples G replies for each prompt, drops the groups that teach nothing (all right, all wrong), balances the
rest by grade, and pushes each reply by how much better it is than its group. Where the stage before has no output yet,
a bundled thinker (what train/sft.py gives) stands in for it.

Deviations from the paper:
1. `--balance root` (the default) keeps every surviving group and weighs grades by the square root of their frequency.
   The paper's class-balanced down-sampling is `--balance class`; the README compares the three on one seed.
2. `--sft-coef` (off by default) goes on learning explained pairs beside the rewards (sister work AFRL, 2602.10006).
3. `--difficulty prefill` (label-first replies): the labels of a group are drawn from one prefill and only kept groups
   are decoded. Labels, and the replies after them, have exactly the distribution that `samples`, the paper's way, gives.
"""

from __future__ import annotations

import copy
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.judgements import Judgement
from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.predict import before_and_after, dev_scores
from taosr1.judge import BUNDLED, DTYPES, load_judge
from taosr1.learning.batches import Example, collate, micro_batches, padded_tok
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.examples import agreeing, examples_of
from taosr1.learning.identity import identity
from taosr1.learning.loop import Schedule, make_optimizers, train
from taosr1.learning.losses import KL_ESTIMATORS, LossSum, grpo_loss, sft_loss
from taosr1.learning.rewards import NonFiniteRewardError, parse_weights
from taosr1.learning.rollout_group import RolloutBatch, RolloutSettings, describe_outcomes
from taosr1.learning.rollouts import Sampler
from taosr1.learning.selection import balanced_order
from taosr1.learning.trainee import MemoryFlags, load_trainee, memory_problems
from taosr1.model.decoder import Decoder
from taosr1.model.io.folders import model_folder
from taosr1.model.io.weights import load_weights
from taosr1.model.lora import adapters
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.run_folder import Run, RunFlags, is_unfinished, run_problems
from taosr1.runtime.signals import run_main

THINKER = "runs/thinker-sft"
SFT_ROWS = 32  # examples of the SFT term in a step


@dataclass(frozen=True)
class Config(MemoryFlags, RunFlags):
    model: str = option(THINKER, "run folder or Hugging Face folder to start from; where the default is missing, the bundled thinker")
    data: str = option("synthetic:labelled", "graded rows to sample on: a .jsonl/.csv[.gz] file or synthetic:POOL")
    dev: str = option("synthetic:dev", "graded rows that pick the best checkpoint")
    test: str = option("synthetic:test", "graded rows that the start and the result are compared on at the end ('' for none)")
    out: str = option("runs/thinker-grpo", "run folder")
    steps: int = option(100, "optimizer steps")
    groups: int = option(80, "prompts sampled at a time")
    samples: int = option(8, "replies per prompt (G)")
    gamma: int = option(0, "keep a group where 0 < right replies < gamma (0: gamma = G, only all-right and all-wrong go)")
    difficulty: str = option("samples", "how difficulty is measured: sampled replies, or labels drawn from one prefill", ("samples", "prefill"))
    balance: str = option(
        "root",
        "class: keep equally many groups of every grade (the paper); root: keep all, grades weigh as the root of their frequency; none: as they come",
        ("class", "root", "none"),
    )
    min_groups: int = option(8, "sample a further batch of prompts while fewer groups than this are kept")
    max_resample: int = option(1, "batches of prompts sampled for a step, at most; then train on what there is (1: never a second one)")
    temperature: float = option(1.0, "sampling temperature, also of the training log-probs")
    max_new_tokens: int = option(64, "longest reply")
    rewards: str = option("label=1", "named rewards and weights, such as label=1,format=0.1,consistency=0.2,ordinal=0.5; steps needs --data with chains of thought (synthetic:explained)")
    adv_std: str = option("group", "advantages are divided by the std of their group, of the batch, or not at all", ("group", "batch", "none"))
    adv_clamp: float = option(0.0, "bound advantages to plus and minus this, before --balance root weighs them (0: no bound)")
    sft_coef: float = option(0.0, "weight of the cross-entropy of --sft-data, learned on beside the rewards so that it is not forgotten (0: off)")
    sft_data: str = option("synthetic:reasoned", "graded rows, with chains of thought unless the judge only labels, for --sft-coef")
    ratio: str = option("token", "importance ratio per token, or per sequence (GSPO)", ("token", "sequence"))
    normalise: str = option("sequence", "loss per reply (GRPO), per token (DAPO) or by a constant (Dr. GRPO)", ("sequence", "token", "constant"))
    clip_low: float = option(0.2, "how far below 1 the ratio counts")
    clip_high: float = option(0.2, "how far above 1 the ratio counts")
    kl_beta: float = option(0.02, "weight of the KL term to the starting model (0: no reference model is kept)")
    kl_estimator: str = option("k3", "how the KL term is estimated from a sample: k1, k2 or k3 (never negative)", KL_ESTIMATORS)
    updates: int = option(1, "optimizer steps on each batch of rollouts")
    label_weight: float = option(1.0, "weight of the label token where it comes first")
    lr: float = option(1.5e-4, "peak learning rate; use about 1e-6 for a pre-trained model")
    final_lr_frac: float = option(0.1, "learning rate at the end, as a fraction of the peak")
    micro_batch_tok: int = option(4096, "tokens per forward pass, a prompt counted once for its replies (memory; changes no result)")
    eval_every: int = option(25, "steps between dev evaluations, each with a checkpoint")
    dev_rows: int = option(1000, "dev rows used (the first ones)")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    dev_split: str = option("", "the same for --dev and --test (ESCI: test)")
    max_bad_rows: int = option(0, "unreadable rows to skip (all are counted, the first 20 named) before giving up")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of sampling, order of rows and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, groups=1, min_groups=0, max_resample=1, max_new_tokens=1, clip_low=0, clip_high=0, kl_beta=0, adv_clamp=0, updates=1, sft_coef=0,
                      label_weight=0, final_lr_frac=0, micro_batch_tok=1, eval_every=0, dev_rows=0),
            *run_problems(self),
            (self.samples < 2, f"--samples is {self.samples}, expected at least 2: a group of one has no advantage"),
            (not (self.gamma == 0 or 2 <= self.gamma <= self.samples), f"--gamma is {self.gamma}, expected 0 or 2 to --samples"),
            (not self.temperature > 0, f"--temperature is {self.temperature}, expected more than 0"),
            (any(steps % max(self.updates, 1) for steps in (self.eval_every, self.save_every, self.steps)), f"--updates is {self.updates}, expected a "
             f"divisor of --eval-every {self.eval_every}, --save-every {self.save_every} and --steps {self.steps}: checkpoints lie between batches of rollouts"),
            (self.clip_low > 1, f"--clip-low is {self.clip_low}, expected at most 1"),
            *memory_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
        ])  # fmt: skip
        parse_weights(self.rewards)


@dataclass(frozen=True)
class AnchorBatch:
    """A micro-batch of the SFT term: ids, mask (B, T); what its summed cross-entropy is multiplied by."""

    ids: torch.Tensor
    mask: torch.Tensor
    scale: float


def anchor_batches(examples: list[Example], grades: list[int], step: int, sampler: Sampler, config: Config, device: str) -> list[AnchorBatch | None]:
    """This rank's share of the SFT term of one step: `--sft-coef` times the mean cross-entropy of SFT_ROWS examples, grades drawn by the
    root of their frequency.

    The loop divides every sum by what GRPO counts (replies, or token weights), so the scale multiplies by that first.
    """
    if not (config.sft_coef and sampler.replies):
        return []
    counted = sampler.reply_weight if config.normalise == "token" else sampler.replies
    drawn = [examples[row] for row in balanced_order(grades, config.seed, step * SFT_ROWS, SFT_ROWS, power=0.5)]
    scale = config.sft_coef * counted / sum(len(example.reply) for example in drawn)
    parts = sampler.team.share(micro_batches(drawn, sampler.team.budget(drawn, config.micro_batch_tok)), padded_tok)
    collated = (part and collate(part, device) for part in parts)
    return [batch and AnchorBatch(batch.ids, batch.mask, scale) for batch in collated]


def reference_policy(model: Decoder) -> Decoder:
    """What the KL term measures against: a frozen copy of the start or, where adapters are trained, the one model with them switched off."""
    return model if adapters(model) else copy.deepcopy(model).requires_grad_(False)


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = parse_config(Config, __doc__, argv)
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    start_from = config.model
    if config.model == THINKER and (not Path(THINKER).exists() or is_unfinished(THINKER)):
        print(f"{THINKER} does not exist or is not finished yet: starting from the bundled thinker (python train/sft.py makes your own)")
        start_from = BUNDLED
    judge = load_trainee(start_from, config, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain)
    if config.difficulty == "prefill" and judge.prompt.order == "pre-cot":
        raise ValueError(f"--difficulty prefill needs label-first replies, but {start_from} thinks first (pre-cot); use --difficulty samples")
    common = {"seed": config.seed, "max_bad_rows": config.max_bad_rows, "need_grade": True}
    rows = load_rows(config.data, split=config.split, need_cot="steps" in parse_weights(config.rewards), **common)
    dev = load_rows(config.dev, split=config.dev_split, limit=config.dev_rows, **common)
    test = load_rows(config.test, split=config.dev_split, **common) if config.test else []
    anchors: list[Judgement] = []
    if config.sft_coef:
        anchors = load_rows(config.sft_data, need_cot=judge.prompt.order != "label", **common)
        anchors = anchors if judge.prompt.order == "label" else agreeing(anchors)
    examples, grades = examples_of(judge, anchors, "--sft-data"), [row.grade for row in anchors]
    if len({row.grade for row in rows}) == 1:
        print(f"every row of --data has grade {rows[0].grade}: the model can only learn to say that; mix in rows of other grades")
    config = replace(config, model=start_from)  # what is stored: a resumed run has to measure against the same start
    run = Run(config.out, config, config.resume, lambda: identity(judge, data=rows, dev=dev, test=test, sft_data=anchors))
    frozen = reference_policy(judge.model) if config.kl_beta else None
    team = DistributedModel(judge.model, judge.engine, fsdp=config.fsdp, device=device)
    reference = team if frozen is judge.model else frozen and DistributedModel(frozen, judge.engine, fsdp=config.fsdp, device=device)
    settings = RolloutSettings(
        groups=config.groups, samples=config.samples, gamma=config.gamma or None, difficulty=config.difficulty, balance=config.balance,
        min_groups=config.min_groups, max_resample=config.max_resample, temperature=config.temperature, max_new_tokens=config.max_new_tokens,
        adv_std=config.adv_std, adv_clamp=config.adv_clamp or None, compute_dtype=DTYPES[config.dtype], label_weight=config.label_weight, micro_batch_tok=config.micro_batch_tok, seed=config.seed,
    )  # fmt: skip
    sampler = Sampler(judge, rows, settings, parse_weights(config.rewards), reference, team)
    batches: list[RolloutBatch | None] = []
    trouble: NonFiniteRewardError | None = None

    def step_batches(step: int, cursor: dict) -> list[RolloutBatch | AnchorBatch | None]:
        nonlocal batches, trouble
        if step % config.updates == 0:
            batches, trouble = [], None
            try:
                batches, groups = sampler.collect(step, cursor)
            except NonFiniteRewardError as error:
                run.log_samples(step + 1, error.records)
                trouble = error
                raise
            run.log_samples(step + 1, groups)
        if trouble is not None:  # there is nothing for this batch's other updates either
            raise trouble
        return batches + anchor_batches(examples, grades, step, sampler, config, device)

    def loss_fn(model, batch: RolloutBatch | AnchorBatch) -> LossSum:
        if isinstance(batch, AnchorBatch):
            return LossSum(batch.scale * sft_loss(judge.engine.completion_logp(model, batch.ids, batch.mask), batch.mask).sum, 0.0, {})
        logp, entropy = judge.engine.completion_logp(model, batch.ids, batch.mask, temperature=config.temperature, with_entropy=True)
        return grpo_loss(
            logp, batch.old_logp, batch.advantages, batch.mask, ref_logp=batch.ref_logp, kl_beta=config.kl_beta, kl_estimator=config.kl_estimator, clip_low=config.clip_low,
            clip_high=config.clip_high, ratio=config.ratio, normalise=config.normalise, max_length=config.max_new_tokens, weights=batch.weights, entropy=entropy,
        )  # fmt: skip

    def evaluate(step: int) -> dict[str, float]:
        with team.whole(DTYPES[config.dtype]) as model:
            return dev_scores(replace(judge, model=model), dev, config.max_new_tokens)

    last = train(
        judge.model, judge.tokenizer, judge.prompt, run,
        schedule=Schedule(config.steps, final_lr_frac=config.final_lr_frac, eval_every=config.eval_every, save_every=config.save_every, keep_last=config.keep_last,
                          max_skipped=config.max_skipped, boundary=config.updates),
        optimizers=make_optimizers(judge.model, config.lr, weight_decay=0.0),
        step_batches=step_batches,
        loss_fn=loss_fn,
        evaluate=evaluate,
        step_metrics=lambda: sampler.metrics,
        compute_dtype=DTYPES[config.dtype],
        description=f"grpo {judge.prompt.order}",
        team=team,
    )  # fmt: skip
    if sampler.outcomes:
        print(describe_outcomes(sampler.outcomes))
    if not test:
        return last
    if config.fsdp:  # no rank has room for more than one whole copy: the shards take on the start's weights, and then the best

        def whole(name: str) -> AbstractContextManager[Decoder]:
            folder = judge.model.source if name == "start" else model_folder(config.out)
            load_weights(judge.model, folder)
            return team.whole(DTYPES[config.dtype])

        return last | before_and_after(judge, judge.model, config.out, test, config.max_new_tokens, whole)
    start = judge.model if adapters(judge.model) else frozen or load_judge(start_from, device=device, plain=config.plain).model
    return last | before_and_after(judge, start, config.out, test, config.max_new_tokens)


if __name__ == "__main__":
    run_main(main)
