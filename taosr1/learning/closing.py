"""How a training script ends, and what it says when its run is finished already: best score, folder, next command."""

from __future__ import annotations

from dataclasses import fields

from taosr1.data.flags import ReadFlags
from taosr1.data.rows import split_spec
from taosr1.data.sources import is_pool, same_world
from taosr1.data.splits import AUTO
from taosr1.judge_model import JudgeModel
from taosr1.runtime.checkpoint import checkpoints, read_best
from taosr1.runtime.cli import command_line
from taosr1.runtime.files import read_json
from taosr1.runtime.run_folder import Run, is_unfinished

GRADED_ROWS = "GRADED_ROWS"  # stands in a command for a file that this run did not have
READING = tuple(field.name for field in fields(ReadFlags))


def say_finished(run: Run, judge: JudgeModel, config, stage: str) -> dict[str, float]:
    """Print what the run gave and the commands that may follow.

    config: of the script, whose paths and flags of reading the commands repeat. stage: "sft", "dpo" or "grpo".
    Returns: the comparison in test.json, {} where there is none.
    """
    run.close()
    done = max(dict(checkpoints(run.checkpoints)), default=0)
    steps = f"already finished at step {done}" if run.finished else f"finished at step {done}"
    if is_unfinished(run.folder):  # --steps is below the step that it was stopped at
        steps = f"stopped at step {done}, and --steps {config.steps} leaves none to train"
    sizes = [parameter.numel() for parameter in judge.model.parameters() if parameter.requires_grad]
    kind = f"LoRA adapters of rank {config.lora_rank}" if config.lora_rank else "all weights"
    print(f"{stage} {judge.prompt.order}: {steps}; run folder {config.out}")
    print(f"trained: {kind}, {sum(sizes):,} numbers, on {config.data}")
    best = read_best(run.checkpoints)
    if best:
        where = f"--model {config.out} loads that checkpoint"
        print(f"best dev macro-F1: {100 * best['dev_macro_f1']:.1f} at step {best['step']}; {where}")
    else:
        print(f"never evaluated on dev rows: --model {config.out} loads the newest checkpoint")
    for command in next_commands(stage, judge.prompt.order, config):
        note = f"   ({GRADED_ROWS}: a file of yours)" if GRADED_ROWS in command else ""
        print(f"next: {command}{note}")
    test = run.folder / "test.json"
    return read_json(test) if test.exists() else {}


def next_commands(stage: str, order: str, config) -> list[str]:
    """The next stage, where its rows are known, and the measurement or use of this one.

    Rows that were set aside (--dev auto) are set aside again from the same --data by the same --seed.
    """
    out = config.out.rstrip("/")
    base = out.removesuffix(f"-{stage}")
    dev = {"dev": config.dev, "dev_split": config.dev_split} if _is_own(config.dev) else {}
    rows = {"data": config.data, "split": getattr(config, "split", ""), "seed": config.seed}
    world = _is_own(config.data) and same_world(config.data, "labelled")  # a catalogue's: its other pools are fresh
    if world and stage == "sft":
        rows["data"] = world
    if not _is_own(config.data):
        rows = {}
    commands = []
    if stage == "sft" and order == "post-cot":
        commands += [_command("train/mine_pairs.py", config, out=f"{base}-pairs.jsonl", **rows)]
    elif stage == "sft" and order == "pre-cot":
        commands += [_command("train/grpo.py", config, out=f"{base}-grpo", **rows, **dev)]
    elif stage == "dpo":  # its own rows are pairs: those of GRPO are the embedded shop's, or not known here
        more = {} if is_pool(config.dev) else {"data": GRADED_ROWS, **dev}
        more |= {} if order == "pre-cot" else {"difficulty": "prefill"}
        commands += [_command("train/grpo.py", config, out=f"{base}-grpo", **more)]
    elif stage == "grpo" and order == "pre-cot" and (world or not rows):
        pool = {"data": same_world(config.data, "unlabelled"), "seed": config.seed} if world else {}
        commands += [_command("train/label_pool.py", config, out=f"{base}-pool.jsonl", **pool)]
    return [*commands, _use(order, config)]


def _use(order: str, config) -> str:
    """What the judge is worth on --test or on the dev rows; its answers to --data where all dev rows are from there."""
    test, dev, split = getattr(config, "test", ""), config.dev, config.dev_split
    fitted: dict[str, object] = {}
    if _is_own(test) and _is_own(dev) and test != dev and order != "pre-cot":  # it has probabilities to fit to
        fitted = {"dev": dev, "dev_split": split, "fit_temperature": True}
    if _is_own(test) or _is_own(dev):
        return _command("infer/evaluate.py", config, data=test if _is_own(test) else dev, split=split, **fitted)
    if _is_own(config.data) and dev == AUTO:
        rows = {"data": config.data, "split": getattr(config, "split", "")}
        if order == "pre-cot":
            return _command("infer/explain.py", config, **rows)
        return _command("infer/score.py", config, out=f"{config.out.rstrip('/')}-scored.jsonl", **rows)
    if not dev:
        return _command("infer/evaluate.py", config, data=GRADED_ROWS)
    if order != "pre-cot":
        fitted = {"dev": "synthetic:dev", "fit_temperature": True}
    return _command("infer/evaluate.py", config, **fitted)  # on the test rows of the embedded shop


def _is_own(spec: str) -> bool:
    """Whether rows are the user's, and not the embedded shop's."""
    return spec not in ("", AUTO) and not all(map(is_pool, split_spec(spec)))


def _command(script: str, config, **flags: object) -> str:
    """The script on this run's judge; with the flags of reading, where a file is read, and the device."""
    usual = {field.name: field.default for field in fields(config)}
    given = READING if any(_is_own(str(flags.get(name, ""))) for name in ("data", "dev")) else ()
    flags |= {name: getattr(config, name) for name in (*given, "device")}
    same = (*given, "device", "seed")
    kept = {name: value for name, value in flags.items() if value != (usual[name] if name in same else "")}
    return command_line(script, model=config.out, **kept)
