"""Stage 3, GRPO with difficulty-based dynamic sampling: the judge learns from grades alone, no reasons needed.

    python train/grpo.py                                              # the thinker, on grades that SFT has not seen
    python train/grpo.py --balance none --out runs/natural            # natural shares: what balance is worth
    python train/grpo.py --model runs/post-dpo --difficulty prefill --out runs/post-grpo  # the paper's third stage
    python train/grpo.py --difficulty none --balance none --adv-std none --normalise constant --kl-beta 0  # REINFORCE

Every step samples G replies for each prompt, drops the groups that teach nothing (all right, all wrong), balances the
rest by grade, and pushes each reply by how much better it is than its group. Where the stage before has no output yet,
a bundled thinker (what train/sft.py gives) stands in for it.

Deviations from the paper:
1. `--balance root` (the default) keeps every surviving group and weighs grades by the square root of their frequency.
   The paper's class-balanced down-sampling is `--balance class`; the README compares the three on one seed.
2. `--sft-coef` (off by default) adds the cross-entropy of explained pairs to the loss (sister work AFRL, 2602.10006).
3. `--difficulty prefill` (label-first replies): the labels of a group are drawn from one prefill and only kept groups
   are decoded. Labels and replies have exactly the distribution that `samples`, the paper's way, gives.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from torch import Tensor

from taosr1.data.flags import ReadFlags
from taosr1.data.sources import load_rows
from taosr1.data.splits import AUTO, AUTO_HELP, Rows, load_splits, resolved
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.doctor import say_findings
from taosr1.evaluation.predict import before_and_after, dev_scores
from taosr1.judge_model import BUNDLED, DTYPES, JudgeModel
from taosr1.learning.batches import Batch, Example, collate, label_token_weights
from taosr1.learning.checkpoint_weights import best_weights, start_weights
from taosr1.learning.closing import say_finished
from taosr1.learning.distributed_model import DistributedModel, init_distributed
from taosr1.learning.draw_order import balanced_order, keyed_generator
from taosr1.learning.examples import agreeing, examples_of
from taosr1.learning.loop import Stage, StepItems, train
from taosr1.learning.loss_checks import KL_ESTIMATORS, NORMALISES, RATIOS, SCALES
from taosr1.learning.losses import LossSum, grpo_loss, sft_loss
from taosr1.learning.optimizers import Schedule, make_optimizers
from taosr1.learning.reference import reference_policy, with_stored_logp
from taosr1.learning.rewards import parse_weights
from taosr1.learning.rollout_group import Group, RolloutBatch, sample_records
from taosr1.learning.rollout_metrics import count_outcomes, describe_outcomes, rollout_metrics
from taosr1.learning.rollouts import (
    Sampler,
    add_advantages,
    add_rewards,
    balanced,
    drop_by_difficulty,
    remember_survival,
)
from taosr1.learning.trainee import MemoryFlags, default_or_bundled, identity, load_trainee, memory_problems
from taosr1.model.decoder import Decoder
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.run_folder import Run, RunFlags, run_problems
from taosr1.runtime.signals import run_main
from taosr1.task.judgement import Judgement
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

THINKER = "runs/thinker-sft"
SFT_ROWS = 32  # examples of the SFT term in a step


@dataclass(frozen=True)
class Config(ReadFlags, PromptFlags, MemoryFlags, RunFlags):
    model: str = option(
        THINKER, "run folder or Hugging Face folder to start from; where the default is missing, the bundled thinker"
    )
    data: str = option("synthetic:labelled", "rows to sample on: a file, synthetic:POOL or catalogue:FILE:POOL")
    dev: str = option(AUTO, f"graded rows that pick the best checkpoint; {AUTO_HELP}")
    test: str = option(
        AUTO,
        "graded rows that the start and the result are compared on at the end ('' for none); auto: synthetic:test "
        "where --data is the embedded shop, else none",
    )
    out: str = option("runs/thinker-grpo", "run folder")
    steps: int = option(100, "optimizer steps")
    groups: int = option(80, "prompts sampled at a time")
    samples: int = option(8, "replies per prompt (G)")
    gamma: int = option(
        0, "keep a group where 0 < right replies < gamma (0: gamma = G, only all-right and all-wrong are dropped)"
    )
    difficulty: str = option(
        "samples",
        "how difficulty is measured: sampled replies, or labels drawn from one prefill; none: every group is kept",
        ("samples", "prefill", "none"),
    )
    balance: str = option(
        "root",
        "class: keep equally many groups of every grade (the paper); root: keep all, grades weigh as the root of their "
        "frequency; none: as they come",
        ("class", "root", "none"),
    )
    min_groups: int = option(8, "sample a further batch of prompts while fewer groups than this are kept")
    max_resample: int = option(
        1, "batches of prompts sampled for a step, at most; then train on what there is (1: never a second one)"
    )
    temperature: float = option(1.0, "sampling temperature, also of the training log-probs")
    max_new_tokens: int = option(64, "longest reply")
    rewards: str = option(
        "label=1",
        "named rewards and weights, such as label=1,format=0.1,consistency=0.2,ordinal=0.5; steps needs --data with "
        "chains of thought (synthetic:explained)",
    )
    adv_std: str = option(
        "group", "advantages are divided by the std of their group, of the batch, or not at all", SCALES
    )
    adv_clamp: float = option(
        0.0, "bound advantages to plus and minus this, before --balance root weighs them (0: no bound)"
    )
    sft_coef: float = option(
        0.0, "weight of the cross-entropy of --sft-data, which stays in the loss so that it is not forgotten (0: off)"
    )
    sft_data: str = option(
        "synthetic:reasoned", "graded rows, with chains of thought unless the judge only labels, for --sft-coef"
    )
    ratio: str = option("token", "importance ratio per token, or per sequence (GSPO)", RATIOS)
    normalise: str = option(
        "sequence", "loss per reply (GRPO), per token (DAPO) or by a constant (Dr. GRPO)", NORMALISES
    )
    clip_low: float = option(0.2, "how far below 1 the ratio counts")
    clip_high: float = option(0.2, "how far above 1 the ratio counts")
    kl_beta: float = option(0.02, "weight of the KL term to the starting model (0: no reference model is kept)")
    kl_estimator: str = option(
        "k3", "how the KL term is estimated from a sample: k1, k2 or k3 (never negative)", KL_ESTIMATORS
    )
    updates: int = option(1, "optimizer steps on each batch of rollouts")
    label_weight: float = option(1.0, "weight of the label token where it comes first")
    lr: float = option(1.5e-4, "peak learning rate; use about 1e-6 for a pre-trained model")
    final_lr_frac: float = option(0.1, "learning rate at the end, as a fraction of the peak")
    micro_batch_tok: int = option(
        4096, "tokens per forward pass, what prompts share counted once (memory; changes no result)"
    )
    eval_every: int = option(25, "steps between dev evaluations, each with a checkpoint")
    dev_rows: int = option(1000, "dev rows used (the first ones; 0: all)")
    split: str = option("", "keep only the rows whose 'split' column says this (ESCI: train)")
    dev_split: str = option("", "the same for --dev and --test (ESCI: test)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", "compute type; what is trained and its optimizer stay float32", tuple(DTYPES))
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of sampling, order of rows and the embedded shop")

    def __post_init__(self) -> None:
        check([
            *at_least(self, steps=1, groups=1, min_groups=0, max_resample=1, max_new_tokens=1, clip_low=0, clip_high=0,
                      kl_beta=0, adv_clamp=0, updates=1, sft_coef=0, label_weight=0, final_lr_frac=0, micro_batch_tok=1,
                      eval_every=0, dev_rows=0),
            *run_problems(self),
            (self.samples < 2, f"--samples is {self.samples}, expected at least 2: a group of one has no advantage"),
            (not (self.gamma == 0 or 2 <= self.gamma <= self.samples),
             f"--gamma is {self.gamma}, expected 0 or 2 to --samples"),
            (self.gamma and self.difficulty == "none",
             f"--gamma is {self.gamma}, but --difficulty none keeps every group: leave one of them out"),
            (not self.temperature > 0, f"--temperature is {self.temperature}, expected more than 0"),
            (any(steps % max(self.updates, 1) for steps in (self.eval_every, self.save_every, self.steps)),
             f"--updates is {self.updates}, expected a divisor of --eval-every {self.eval_every}, --save-every "
             f"{self.save_every} and --steps {self.steps}: checkpoints are between batches of rollouts"),
            (self.clip_low > 1, f"--clip-low is {self.clip_low}, expected at most 1"),
            *memory_problems(self),
            *prompt_problems(self),
            (not self.lr > 0, f"--lr is {self.lr}, expected more than 0"),
        ])  # fmt: skip
        parse_weights(self.rewards)


def load_all_rows(config: Config, judge: JudgeModel) -> tuple[Rows, list[Judgement]]:
    """The rows of --data, --dev and --test; and those of --sft-data."""
    rows = load_splits(config, need_cot="steps" in parse_weights(config.rewards))
    for name, part in zip(("--data", "--dev", "--test"), rows):
        if part:
            say_data(part, judge, name)
    if not rows.test:
        print("no --test: start and result are not compared; infer/evaluate.py measures them", file=sys.stderr)
    sft_data: list[Judgement] = []
    if config.sft_coef:
        explained = judge.prompt.order != "label"
        needs = {"seed": config.seed, "need_grade": True, "need_cot": explained}
        sft_data = load_rows(config.sft_data, config, flag="--sft-data", **needs)
        sft_data = agreeing(sft_data) if explained else sft_data
    if len({row.grade for row in rows.data}) == 1:
        grade = rows.data[0].grade
        hint = "the model can only learn to say that; mix in rows of other grades"
        print(f"every row of --data has grade {grade}: {hint}")
    return rows, sft_data


# ---- The SFT term: cross-entropy of explained pairs, learned on beside the rewards (--sft-coef) ----------------------


@dataclass(frozen=True)
class SftTermExample(Example):
    """scale: what the summed cross-entropy is multiplied by, the same for all examples of a step."""

    scale: float

    @staticmethod
    def collate(items: Sequence[SftTermExample], device="cpu") -> SftTermBatch:
        batch = collate(items, device)
        return SftTermBatch(batch.ids, batch.mask, items[0].scale)


@dataclass(frozen=True)
class SftTermBatch(Batch):
    scale: float


class SftTerm:
    """Draws the examples of every step from graded rows; no rows: there is no such term."""

    def __init__(self, judge: JudgeModel, rows: Sequence[Judgement], config: Config) -> None:
        self.examples, self.grades = examples_of(judge, rows, "--sft-data"), [row.grade for row in rows]
        self.config = config
        self.label_weight = 1.0 if judge.prompt.order == "pre-cot" else config.label_weight

    def draw(self, step: int, groups: Sequence[Group]) -> list[SftTermExample]:
        """SFT_ROWS examples, drawn by the root of their grades' frequency; none where no group is trained on.

        The loop divides all sums of a step by what GRPO counts: replies or, with normalise "token", token weights. So
        the scale multiplies by that count, and what remains is --sft-coef times the mean cross-entropy per token.
        """
        replies = [reply for group in groups for reply in group.replies]
        if not (self.examples and replies):
            return []
        counted, config = len(replies), self.config
        if config.normalise == "token":
            counted = sum(len(reply.ids) for reply in replies) + len(replies) * (self.label_weight - 1)
        order = balanced_order(self.grades, config.seed, step * SFT_ROWS, SFT_ROWS, power=0.5)
        drawn = [self.examples[row] for row in order]
        scale = config.sft_coef * counted / sum(len(example.reply) for example in drawn)
        return [SftTermExample(example.prompt, example.reply, scale) for example in drawn]


def sft_term_loss(logp: Tensor, batch: SftTermBatch) -> LossSum:
    """The scaled sum. It counts nothing, so that the step is divided by what GRPO counts."""
    return LossSum(batch.scale * sft_loss(logp, batch.mask).sum, 0.0, {})


# ---- The stage -------------------------------------------------------------------------------------------------------


def begin(config: Config) -> tuple[JudgeModel, Rows, SftTerm, Run, DistributedModel, DistributedModel | None]:
    """Load the judge and its rows, and open the run; last are the model on all ranks and the reference policy."""
    device = init_distributed(config.device, deterministic=config.deterministic, fsdp=config.fsdp)
    judge = load_trainee(
        config.model, config, dtype=config.dtype, device=device, seed=config.seed, plain=config.plain
    )
    if config.difficulty == "prefill" and judge.prompt.order == "pre-cot":
        problem = f"--difficulty prefill needs label-first replies, but {config.model} thinks first (pre-cot)"
        raise ValueError(f"{problem}; use --difficulty samples")
    rows, sft_data = load_all_rows(config, judge)
    sft_term = SftTerm(judge, sft_data, config)
    run = Run(config.out, config, config.resume, lambda: identity(judge, **rows._asdict(), sft_data=sft_data))
    settings = {"fsdp": config.fsdp, "device": device, "dtype": DTYPES[config.dtype]}
    frozen = reference_policy(judge.model) if config.kl_beta else None  # copied before the model is sharded
    distributed = DistributedModel(judge.model, judge.engine, **settings)
    return judge, rows, sft_term, run, distributed, frozen and DistributedModel(frozen, judge.engine, **settings)


def rollouts(
    step: int, cursor: dict, *, config: Config, rows: list[Judgement], sampler: Sampler, distributed: DistributedModel
) -> StepItems:
    """The groups of a step: prompts with G replies each, rewarded, filtered by difficulty, balanced by grade."""
    model, weights, sampled = distributed.sampling_model(), parse_weights(config.rewards), []
    for attempt in range(config.max_resample):
        generator = keyed_generator(config.seed, "rollout", step, attempt)
        groups = sampler.sample(model, sampler.draw_rows(cursor), generator)  # P prompts x G replies, or their labels
        if config.difficulty != "none":
            drop_by_difficulty(groups, config.gamma)  # kept: 0 < right < gamma
        sampler.complete(model, groups, generator)  # --difficulty prefill: only kept groups are decoded
        add_rewards(groups, rows, weights)
        remember_survival(groups, cursor)
        sampled += groups
        kept = balanced(sampled, config.balance, keyed_generator(config.seed, "balance", step))
        if len(kept) >= config.min_groups:
            break
    add_advantages(kept, sampler.grades, config)
    count_outcomes(cursor, sampled, kept, config)
    records = sample_records(sampled, rows, config.steps // config.updates)
    metrics = rollout_metrics(sampled, kept, attempt + 1, weights) | {"samples_left_out": len(sampled) - len(records)}
    return StepItems(kept, metrics, records)


def main(argv: list[str] | None = None) -> dict[str, float]:
    config = resolved(parse_config(Config, __doc__, argv))
    config = replace(config, model=default_or_bundled(config.model, THINKER, BUNDLED))
    judge, rows, sft_term, run, distributed, reference = begin(config)
    if run.finished and (not rows.test or (run.folder / "test.json").exists()):
        return say_finished(run, judge, config, "grpo")
    sampler = Sampler(judge, rows.data, config)

    def loss(model: Decoder, batch: RolloutBatch | SftTermBatch) -> LossSum:
        if isinstance(batch, SftTermBatch):
            return sft_term_loss(judge.engine.completion_logp(model, batch.ids, batch.mask), batch)
        logp, entropy = judge.engine.completion_logp(
            model, batch.ids, batch.mask, temperature=config.temperature, with_entropy=True
        )
        return grpo_loss(
            logp, batch.old_logp, batch.advantages, batch.mask, ref_logp=batch.ref_logp, kl_beta=config.kl_beta,
            kl_estimator=config.kl_estimator, clip_low=config.clip_low, clip_high=config.clip_high, ratio=config.ratio,
            normalise=config.normalise, max_length=config.max_new_tokens, entropy=entropy,
            weights=label_token_weights(batch.mask, config.label_weight, judge.prompt.order),
        )  # fmt: skip

    stage = Stage(
        f"grpo {judge.prompt.order}",
        draw=partial(rollouts, config=config, rows=rows.data, sampler=sampler, distributed=distributed),
        loss=loss,
        prepare=partial(with_stored_logp, policy=distributed, reference=reference, temperature=config.temperature),
        extra=sft_term.draw,
        summary=describe_outcomes,
    )
    last = train(
        judge, run, stage,
        schedule=Schedule.of(config), optimizers=make_optimizers(judge.model, config.lr, weight_decay=0.0),
        distributed=distributed, evaluate=lambda judge: dev_scores(judge, rows.dev, config.max_new_tokens),
    )  # fmt: skip
    if rows.test:
        start, best = start_weights(distributed, reference, config.model), best_weights(distributed, config.out)
        compared = {"start": start, "result": best}
        before_and_after(judge, compared, config.out, rows.test, config.max_new_tokens)
    say_findings(run.folder)
    return last | say_finished(run, judge, config, "grpo")


if __name__ == "__main__":
    run_main(main, Config)
