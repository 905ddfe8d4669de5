"""How a training script ends, and what it says when its run is finished already: best score, folder, next command."""

from __future__ import annotations

from dataclasses import fields

from taosr1.data.flags import ReadFlags
from taosr1.judge_model import JudgeModel
from taosr1.runtime.checkpoint import checkpoints, read_best
from taosr1.runtime.cli import command_line
from taosr1.runtime.files import read_json
from taosr1.runtime.run_folder import Run

SHOP = "synthetic:"  # rows of the embedded shop, which the next script takes by itself
READING = tuple(field.name for field in fields(ReadFlags))


def say_finished(run: Run, judge: JudgeModel, config, stage: str) -> dict[str, float]:
    """Print what the run gave and the commands that may follow.

    config: of the script, whose paths and flags of reading the commands repeat. stage: "sft", "dpo" or "grpo".
    Returns: the comparison in test.json, {} where there is none.
    """
    run.close()
    done = max(dict(checkpoints(run.checkpoints)), default=0)
    steps = f"already finished at step {done}" if run.finished else f"finished at step {done}"
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
        print(f"next: {command}")
    test = run.folder / "test.json"
    return read_json(test) if test.exists() else {}


def next_commands(stage: str, order: str, config) -> list[str]:
    """The next stage, where its rows are known, and the measurement of this one."""
    out = config.out.rstrip("/")
    base = out.removesuffix(f"-{stage}")
    own = not config.data.startswith(SHOP)
    split = getattr(config, "split", "") if own else ""
    dev = {} if config.dev.startswith(SHOP) else {"dev": config.dev, "dev_split": config.dev_split, "test": ""}
    rows = {"data": config.data, "split": split} if own else {}
    commands = []
    if stage == "sft" and order == "post-cot":
        commands += [_command("train/mine_pairs.py", config, out=f"{base}-pairs.jsonl", **rows)]
    elif stage == "sft" and order == "pre-cot":
        commands += [_command("train/grpo.py", config, out=f"{base}-grpo", **rows, **dev)]
    elif stage == "dpo" and not dev:  # its own rows are pairs; those of GRPO are not known here
        commands += [_command("train/grpo.py", config, difficulty="prefill", out=f"{base}-grpo")]
    elif stage == "grpo" and order == "pre-cot" and not own:
        commands += [_command("train/label_pool.py", config, out=f"{base}-pool.jsonl")]
    return [*commands, _measure(order, config)]


def _measure(order: str, config) -> str:
    """infer/evaluate.py on --test, where there is one, else on the dev rows, or on the shop's test rows."""
    test, dev, split = getattr(config, "test", ""), config.dev, config.dev_split
    if not test or test == dev or test.startswith(SHOP):  # the shop says nothing about a judge of other rows
        test = "" if dev.startswith(SHOP) else dev
    flags = {"data": test, "split": split if test else ""}
    if order != "pre-cot" and dev and test != dev:  # it has probabilities, which a temperature and beta are fitted to
        flags |= {"dev": dev, "dev_split": "" if dev.startswith(SHOP) else split, "fit_temperature": True}
    return _command("infer/evaluate.py", config, **flags)


def _command(script: str, config, **flags: object) -> str:
    """The script on this run's judge; with the flags of reading, where a file is read, and the device."""
    flags = {name: value for name, value in flags.items() if value != "" or name == "test"}
    given = READING if any(name in flags for name in ("data", "dev")) else ()
    same = {name: getattr(config, name) for name in (*given, "device")}
    kept = {name: value for name, value in same.items() if value != type(config).__dataclass_fields__[name].default}
    return command_line(script, model=config.out, **flags, **kept)
