"""The one training loop. It knows no stage: a stage says how the items of a step are drawn, and what their loss is.

The loop does what is the same for all: it cuts a step's items into micro-batches and deals them out to the ranks, adds
up gradients and divides them once (`gradient.py`), repeats updates on the same items, skips steps whose numbers are
not finite, halves a micro-batch that does not fit into memory, saves, evaluates, and continues where a run was stopped.
SIGTERM and Ctrl-C let the step end and save it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from taosr1.judge_model import JudgeModel
from taosr1.learning.batches import Batch, Item
from taosr1.learning.checkpoint_weights import read_weights, write_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.learning.gradient import Loss, accumulate
from taosr1.learning.optimizers import Schedule, set_learning_rates
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.checkpoint import BEST_FILE, load_checkpoint, prune, read_best, save_checkpoint
from taosr1.runtime.cli import progress
from taosr1.runtime.distributed import gather, on_rank_zero, this_rank
from taosr1.runtime.files import write_checksummed, write_json
from taosr1.runtime.run_folder import Run
from taosr1.runtime.signals import Stopped, StopRequests

SCORE = "dev_macro_f1"  # of an evaluation: the best checkpoint is the one where it is highest
DEV_LOGP = "dev_logp"  # the same where nothing is judged (train/pretrain.py)
BAR_METRICS = ("loss", "reward_balanced", "kept_frac", "kl", "rewards/accuracies", SCORE)


@dataclass(frozen=True)
class StepItems:
    """What a step learns from, the same on every rank.

    metrics: logged beside the loss. samples: lines for samples.jsonl.
    """

    items: Sequence[Item]
    metrics: dict[str, float] = field(default_factory=dict)
    samples: Sequence[dict] = ()


@dataclass(frozen=True)
class Stage:
    """What the loop has to know of a stage.

    name: shown in the progress bar and in messages.
    draw: (step, cursor) -> what `schedule.updates` steps, this one and those after it, learn from. It may depend on
        configuration, data, the current weights and `cursor`, a small JSON-able dict of its own that checkpoints save:
        so a resumed run needs no replay and equals the unbroken one. It may raise FloatingPointError on all ranks.
    loss: (model, batch) -> `LossSum` of a micro-batch: of what `collate` of its items returned.
    prepare: (this rank's batches, all items) -> the batches with what is measured once, before their first update.
    extra: (step, items) -> further items, drawn anew in every step, which are added to those of `draw`.
    summary: cursor -> what is printed after the last step, "" for nothing.
    """

    name: str
    draw: Callable[[int, dict], StepItems]
    loss: Loss
    prepare: Callable[[list[Batch | None], Sequence[Item]], list[Batch | None]] = lambda batches, items: batches
    extra: Callable[[int, Sequence[Item]], Sequence[Item]] = lambda step, items: ()
    summary: Callable[[dict], str] = lambda cursor: ""


def train(
    judge: JudgeModel,
    run: Run,
    stage: Stage,
    *,
    schedule: Schedule,
    optimizers: list[torch.optim.Optimizer],
    distributed: DistributedModel | None = None,
    evaluate: Callable[[JudgeModel], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train until `schedule.steps`; checkpoints before evaluating, so no evaluation can lose a finished step.

    distributed: the ranks around the judge's model; None where it trains alone.
    evaluate: its `SCORE` (or `DEV_LOGP`) entry decides which checkpoint `best.json` names.
    Returns: the last evaluation ({} without `evaluate`).
    Raises: FloatingPointError after `schedule.max_skipped` steps in a row whose loss, gradient or reward was not
        finite; Stopped where SIGTERM or Ctrl-C came, after the step was saved.
    """
    distributed = distributed or DistributedModel(judge.model, judge.engine)
    checkpoints = _Checkpoints(judge, run, stage.name, schedule, optimizers, distributed, evaluate)
    steps = _Steps(stage, run, schedule, distributed, optimizers)
    with closing(run), StopRequests() as asked:
        step, cursor, skipped = checkpoints.resume()
        start, silent = step, not distributed.ranks.is_rank_zero
        bar = progress(total=schedule.steps, initial=step, desc=stage.name, unit="step", disable=silent)
        while step < schedule.steps:
            started = time.perf_counter()
            metrics = steps.take(step, cursor)
            skipped = skipped + 1 if steps.error else 0
            if skipped >= schedule.max_skipped:
                raise FloatingPointError(_report_bad_steps(skipped, step, steps, run.folder, judge.tokenizer))
            step += 1
            seconds = round(time.perf_counter() - started, 4)
            run.log(step, **metrics, skipped=skipped, time_s=seconds)
            shown = metrics | checkpoints.last
            bar.set_postfix({name: f"{shown[name]:.3f}" for name in BAR_METRICS if name in shown}, refresh=False)
            bar.update()
            stop = step % schedule.updates == 0 and max(gather(asked.signum))  # for all ranks, at the same step
            if schedule.saves(step) or stop:
                checkpoints.save(step, cursor, skipped)
                if not stop and checkpoints.evaluate(step):
                    stop = max(gather(asked.signum))
                checkpoints.prune()
            if stop:
                done = f"stopped after step {step} of {schedule.steps}, which is saved; the same command continues"
                raise Stopped(stop, f"{stage.name}: {done}")
        bar.close()
        if step > start and stage.summary(cursor):
            print(stage.summary(cursor))
        stop = max(gather(asked.signum))  # one that came too late for a step
    if stop:
        raise Stopped(stop, f"{stage.name}: stopped after its last step, {step}, which is saved")
    return checkpoints.last


# ---- One step --------------------------------------------------------------------------------------------------------


class _Steps:
    """Takes one step after another. What is drawn, dealt out and prepared is kept for `updates` steps.

    Of the last step: batches, this rank's micro-batches; error, why the optimizers did not move the weights, "" where
    they did; records, the groups whose rewards are not finite, where that is the error.
    """

    def __init__(
        self, stage: Stage, run: Run, schedule: Schedule, distributed: DistributedModel,
        optimizers: list[torch.optim.Optimizer],
    ) -> None:  # fmt: skip
        self.stage, self.run, self.schedule, self.distributed = stage, run, schedule, distributed
        self.optimizers = optimizers
        self.drawn, self.prepared, self.batches = StepItems(()), [], []
        self.error, self.draw_error, self.records = "", "", ()

    def take(self, step: int, cursor: dict) -> dict[str, float]:
        """One step: its micro-batches, their gradient, clipped, and the optimizers, unless a number is not finite."""
        distributed, schedule = self.distributed, self.schedule
        rates = {"grad_norm": math.nan, "lr_factor": schedule.lr_factor(step)}
        # What draws from the global generators (dropout) repeats itself in a resumed run, on any device.
        torch.manual_seed(step * distributed.ranks.world + distributed.ranks.rank)
        set_learning_rates(self.optimizers, rates["lr_factor"])
        deal = partial(distributed.deal, max_tokens=schedule.micro_batch_tok)
        if step % schedule.updates == 0:
            self._draw(step, cursor, deal)
        if self.draw_error:
            self.error, self.batches = self.draw_error, []
            return {"loss": math.nan} | rates
        self.batches = [*self.prepared, *deal(self.stage.extra(step, self.drawn.items))]
        distributed.model.train()
        metrics = accumulate(distributed, self.batches, self.stage.loss)
        rates["grad_norm"] = norm = distributed.clip_gradients(schedule.clip_norm)
        finite = math.isfinite(metrics["loss"]) and math.isfinite(norm)
        self.error = "" if finite else f"loss {metrics['loss']}, gradient norm {norm}"
        if finite:
            for optimizer in self.optimizers:
                optimizer.step()
        distributed.model.zero_grad(set_to_none=True)
        metrics |= self.drawn.metrics
        if torch.cuda.is_available():
            metrics["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        return metrics | rates

    def _draw(self, step: int, cursor: dict, deal: Callable[[Sequence[Item]], list[Batch | None]]) -> None:
        """Items for `updates` steps; where drawing fails, that is the error of all these steps."""
        self.drawn, self.prepared, self.draw_error, self.records = StepItems(()), [], "", ()
        try:
            self.drawn = self.stage.draw(step, cursor)
        except FloatingPointError as error:
            self.draw_error, self.records = str(error) or "not finite", getattr(error, "records", ())
        if samples := self.drawn.samples or self.records:
            self.run.log_samples(step + 1, samples)
        if not self.draw_error:
            self.prepared = self.stage.prepare(deal(self.drawn.items), self.drawn.items)


def _report_bad_steps(skipped: int, step: int, steps: _Steps, folder: Path, tokenizer: Tokenizer) -> str:
    """The message that ends a run; the batch that it names is written, one JSON file a rank, with its rows as text."""
    shown = []
    for batch in (batch for batch in steps.batches if batch is not None):
        values = {entry.name: getattr(batch, entry.name) for entry in dataclasses.fields(batch)}
        values = {name: value.tolist() if torch.is_tensor(value) else value for name, value in values.items()}
        shown.append({"texts": [tokenizer.decode(row) for row in values.get("ids", [])], **values})
    path = folder / f"bad-step-{step:06d}-rank-{this_rank().rank}.json"
    write_json(path, {"step": step, "error": steps.error, "micro_batches": shown, "records": list(steps.records)})
    where = f"its batch is in {path}; lower --lr, or look at that batch"
    return f"step {step}: {steps.error}, {skipped} in a row; {where}"


# ---- Between steps ---------------------------------------------------------------------------------------------------


@dataclass
class _Checkpoints:
    """A run's checkpoints and evaluations. last: the last evaluation."""

    judge: JudgeModel
    run: Run
    name: str
    schedule: Schedule
    optimizers: list[torch.optim.Optimizer]
    distributed: DistributedModel
    evaluation: Callable[[JudgeModel], dict[str, float]] | None
    last: dict[str, float] = field(default_factory=dict)

    def resume(self) -> tuple[int, dict, int]:
        """Step, cursor, and how many steps in a row were skipped before it; an evaluation that was lost is made."""
        run = self.run
        if not run.start:
            return 0, {}, 0
        path = run.start[1]
        state = load_checkpoint(path, self.optimizers, partial(read_weights, self.judge.model))
        left = "" if state[0] < self.schedule.steps else f"; --steps {self.schedule.steps} leaves none to train"
        print(f"{self.name}: continuing from step {state[0]} ({path}){left}")
        own = path.resolve().parent == run.checkpoints.resolve()  # another run's checkpoint is not this one's best
        if own and read_best(run.checkpoints).get("evaluated_through", 0) < state[0]:
            self.evaluate(state[0])
        self.prune()
        return state

    def save(self, step: int, cursor: dict, skipped: int) -> None:
        self.run.sync()
        write = partial(write_weights, self.judge.model, self.judge.tokenizer, self.judge.prompt)
        save_checkpoint(self.run.checkpoints, step, self.optimizers, cursor, skipped, write)

    def evaluate(self, step: int) -> bool:
        """Where the schedule says so: evaluate, log, and point best.json at this step if it is the best so far."""
        if not (self.schedule.evaluates(step) and self.evaluation):
            return False
        with self.distributed.unsharded() as model:
            self.last = self.evaluation(dataclasses.replace(self.judge, model=model))

        def remember() -> None:
            self.run.log(step, **self.last)
            self.run.sync()
            best, score = read_best(self.run.checkpoints), SCORE if SCORE in self.last else DEV_LOGP
            if not best or self.last[score] > best[score]:
                best = {"step": step, score: self.last[score]}
            write_checksummed(self.run.checkpoints / BEST_FILE, best | {"evaluated_through": step})

        on_rank_zero(remember)
        return True

    def prune(self) -> None:
        on_rank_zero(lambda: prune(self.run.checkpoints, self.schedule.keep_last))
