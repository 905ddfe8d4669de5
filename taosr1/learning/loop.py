"""The one training loop. It knows no stage: a stage says how the items of a step are drawn, and what their loss is.

The loop does what is the same for all: it cuts a step's items into micro-batches and deals them out to the ranks, adds
up gradients and divides them once (`gradient.py`), repeats updates on the same items, skips steps whose numbers are
not finite, halves a micro-batch that does not fit into memory, saves, evaluates, and continues where a run was stopped.
SIGTERM and Ctrl-C give up the step that is under way, and the last finished one is saved.
"""

from __future__ import annotations

import copy
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
from taosr1.runtime.distributed import GivenUp, gather, on_rank_zero, this_rank
from taosr1.runtime.files import write_checksummed, write_json
from taosr1.runtime.progress import Bar, listening
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
        finite; Stopped where SIGTERM or Ctrl-C came, after the last finished step was saved.
    """
    distributed = distributed or DistributedModel(judge.model, judge.engine)
    checkpoints = _Checkpoints(judge, run, stage.name, schedule, optimizers, distributed, evaluate)
    steps = _Steps(stage, run, schedule, distributed, optimizers)
    start, silent = run.start[0] if run.start else 0, not distributed.ranks.is_rank_zero
    bar = Bar(total=schedule.steps, initial=start, desc=stage.name, unit="step", disable=silent)
    pace = _Pace(bar, start, schedule, checkpoints)
    with closing(run), StopRequests(pace.say_stop) as asked, listening(partial(pace.hear, asked)):
        try:
            with bar:
                step, cursor, skipped = checkpoints.resume()
                while step < schedule.steps:
                    pace.begin(step, cursor, skipped)
                    metrics = steps.take(step, cursor)
                    skipped = skipped + 1 if steps.error else 0
                    if skipped >= schedule.max_skipped:
                        raise FloatingPointError(_report_bad_steps(skipped, step, steps, run.folder, judge.tokenizer))
                    step += 1
                    run.log(step, **metrics, skipped=skipped, time_s=pace.end())
                    shown = metrics | checkpoints.last
                    bar.say(", ".join(f"{name}={shown[name]:.3f}" for name in BAR_METRICS if name in shown))
                    bar.update()
                    stop = due = 0
                    if step % schedule.updates == 0:  # what one rank is asked holds for all, at the same step
                        stop, due = map(max, zip(*gather((asked.signum, checkpoints.is_due()))))
                    if schedule.saves(step) or stop or due:
                        checkpoints.save(step, cursor, skipped)
                        if not stop and checkpoints.evaluate(step):
                            stop = max(gather(asked.signum))
                        checkpoints.prune()
                    if stop:
                        raise Stopped(stop, f"{stage.name}: {checkpoints.say_saved()}")
        except GivenUp:
            pace.save_last_finished()
            raise Stopped(max(gather(asked.signum)), f"{stage.name}: {checkpoints.say_saved()}") from None
        if step > start and stage.summary(cursor):
            print(stage.summary(cursor))
        stop = max(gather(asked.signum))  # one that came too late for a step
    if stop:
        raise Stopped(stop, f"{stage.name}: stopped after its last step, {step}, which is saved")
    return checkpoints.last


class _Pace:
    """Where a run is: for its bar, for one who asks it to stop, and for a step that is given up."""

    def __init__(self, bar: Bar, start: int, schedule: Schedule, checkpoints: _Checkpoints) -> None:
        self.bar, self.schedule, self.checkpoints = bar, schedule, checkpoints
        self.step = start  # the last one that is finished
        self.before: tuple[int, dict, int] | None = None  # step, cursor and skipped before the one under way, if any
        self.began, self.step_s = time.perf_counter(), 0.0

    def begin(self, step: int, cursor: dict, skipped: int) -> None:
        self.step, self.before, self._rng = step, (step, copy.deepcopy(cursor), skipped), torch.get_rng_state()
        self.began = time.perf_counter()

    def end(self) -> float:
        """The seconds that the step took."""
        self.step, self.before = self.step + 1, None
        self.step_s = round(time.perf_counter() - self.began, 4)
        return self.step_s

    def _gives_up(self) -> bool:
        """Whether the weights are those of a step after which a checkpoint may lie."""
        return self.step % self.schedule.updates == 0

    def hear(self, asked: StopRequests, what: str, done: int | Callable[[], int], total: int) -> None:
        """Between two passes. Raises: GivenUp where a stop was asked for."""
        self.bar.part(what, done, total)
        if self._gives_up():
            asked.check()

    def say_stop(self) -> str:
        """What happens now that a stop was asked for. A sharded model has to end its step."""
        checkpoints, step, updates = self.checkpoints, self.step, self.schedule.updates
        if self._gives_up() and not (checkpoints.distributed.sharded and self.before):
            took = f" ({checkpoints.save_s:.0f} s)" if checkpoints.save_s else ""
            kept = f"step {step} is saved" + (f" first{took}" if step > checkpoints.saved else "")
            return f"stopping: what is under way is given up; {kept if step else 'no step is finished yet'}"
        last = min(self.schedule.steps, step - step % updates + updates)
        left = (last - step) * self.step_s - (time.perf_counter() - self.began)
        seconds = f"in about {max(left, 1):.0f} s" if self.step_s else "no step was timed yet"
        return f"stopping after step {last} ({seconds}); its checkpoint is written first"

    def save_last_finished(self) -> None:
        """As it was before the step that is given up; nothing where that is saved already."""
        if self.before and self.step > self.checkpoints.saved:
            torch.set_rng_state(self._rng)
            self.checkpoints.save(*self.before)
            self.checkpoints.prune()


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
            batches = deal(self.drawn.items)
            with self.distributed.given_up_together():
                self.prepared = self.stage.prepare(batches, self.drawn.items)


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
    """A run's checkpoints and evaluations.

    last: the last evaluation. saved: the newest checkpoint's step. save_s: seconds that writing it took (0: unknown).
    """

    judge: JudgeModel
    run: Run
    name: str
    schedule: Schedule
    optimizers: list[torch.optim.Optimizer]
    distributed: DistributedModel
    evaluation: Callable[[JudgeModel], dict[str, float]] | None
    last: dict[str, float] = field(default_factory=dict)
    saved: int = 0
    save_s: float = 0.0
    _saved_at: float = field(default_factory=lambda: time.monotonic())

    def resume(self) -> tuple[int, dict, int]:
        """Step, cursor, and how many steps in a row were skipped before it; an evaluation that was lost is made."""
        run = self.run
        if not run.start:
            return 0, {}, 0
        path = run.start[1]
        state = load_checkpoint(path, self.optimizers, partial(read_weights, self.judge.model))
        self.saved = state[0]
        left = "" if state[0] < self.schedule.steps else f"; --steps {self.schedule.steps} leaves none to train"
        print(f"{self.name}: continuing from step {state[0]} ({path}){left}")
        own = path.resolve().parent == run.checkpoints.resolve()  # another run's checkpoint is not this one's best
        if own and read_best(run.checkpoints).get("evaluated_through", 0) < state[0]:
            self.evaluate(state[0])
        self.prune()
        return state

    def save(self, step: int, cursor: dict, skipped: int) -> None:
        began = time.monotonic()
        self.run.sync()
        write = partial(write_weights, self.judge.model, self.judge.tokenizer, self.judge.prompt)
        save_checkpoint(self.run.checkpoints, step, self.optimizers, cursor, skipped, write)
        self.saved, self._saved_at = step, time.monotonic()
        self.save_s = self._saved_at - began

    def is_due(self) -> bool:
        """Whether `schedule.save_minutes` have passed since the last checkpoint.

        Choice: never more than a tenth of the time is spent on writing, so a large model's are further apart.
        """
        minutes, passed = self.schedule.save_minutes, time.monotonic() - self._saved_at
        return 0 < 60 * minutes <= passed and 10 * self.save_s <= passed

    def say_saved(self) -> str:
        if not self.saved:
            return "stopped before its first step was finished: nothing is saved, and the same command begins again"
        return f"stopped after step {self.saved} of {self.schedule.steps}, which is saved; the same command continues"

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
