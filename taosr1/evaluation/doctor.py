"""Why does my reward not rise? Reads the metrics of training runs and says in words what is wrong with them.

    python -m taosr1.evaluation.doctor runs/thinker-grpo          # RUN: the --out of a training script
    python -m taosr1.evaluation.doctor runs/a runs/b --strict     # exit code 1 if anything is found: for scripts

Each finding has its number, the step from which on it shows, and the flag to change; examples/guide/doctor.md explains
all of them. A run that is still going is judged as far as it got. Runs of train/sft.py, dpo.py and grpo.py with default
settings up to learning rate, steps, seed and the like are compared with the curves of the default run.

Exit code: 0, with or without findings; 1 with --strict where something was found; 2 for a folder that is no run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from taosr1.evaluation.diagnoses import RULES, diagnose
from taosr1.evaluation.expected import compare
from taosr1.evaluation.record import Finding, Record, read_record
from taosr1.runtime.cli import Parser
from taosr1.runtime.distributed import this_rank

COMMAND = "python -m taosr1.evaluation.doctor"


def examine(run: Record) -> tuple[list[Finding], list[str]]:
    """The findings of a run, by its own rules and against the default run; and what is worth knowing beside them."""
    against, compared = compare(run)
    return [*diagnose(run), *against], [compared, *normal(run)]


def normal(run: Record) -> list[str]:
    """What looks wrong and is not, and what cannot be seen."""
    notes = []
    if run.stage == "grpo" and abs(run.late("loss")) < 0.1:
        why = "a group's advantages sum to 0 and the ratio is 1 when a batch is first used, so the loss is 0 there but "
        why += "for the KL term, and its gradient is not; look at reward_balanced and dev_macro_f1"
        notes.append(f"the loss is {run.late('loss'):.4f}, and near 0 is normal in GRPO: {why}")
    if run.stage == "dpo":
        notes.append(f"the loss began at {run.first('loss'):.2f}: ln 2 = 0.69 is where every DPO run begins, as the "
                     "policy is the reference there")  # fmt: skip
    if run.setting("steps") > run.steps:
        notes.append(f"the run was at step {run.steps} of {run.setting('steps'):.0f} when this was read")
    if run.stage != "pretrain" and "dev_macro_f1" not in run.curves:
        notes.append("there are no dev scores: whether what is learned holds on other rows cannot be seen here")
    if run.stage == "grpo" and "reply_share/1" not in run.curves:
        notes.append("the run is of an older version, which did not log the grades of replies: some rules are silent")
    return notes


def report(folder: str, run: Record, findings: Sequence[Finding], notes: Sequence[str]) -> str:
    """The text for one run."""
    what = f"{len(findings)} found" if findings else "nothing found"
    lines = [f"{folder}: {run.stage}, {run.steps} steps: {what} by {len(RULES[run.stage])} rules"]
    lines += [f"  {number}. {finding}" for number, finding in enumerate(findings, start=1)]
    lines += [f"  note: {note}" for note in [*notes, *run.notes]]
    return "\n".join(lines)


def say_findings(folder: str | Path) -> None:
    """What a training script prints at its end: one line, and one for every finding.

    A run is finished by then: metrics that cannot be read are said, and fail nothing.
    """
    if not this_rank().is_rank_zero:
        return
    try:
        findings, _ = examine(read_record(folder))
    except (OSError, ValueError) as error:
        print(f"doctor: {error}")
        return
    more = f"{COMMAND} {folder}"
    print(f"doctor: {len(findings)} found; more: {more}" if findings else f"doctor: nothing found; notes: {more}")
    for finding in findings:
        print(f"doctor: {finding}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns: the exit code."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(COMMAND, description=__doc__, allow_abbrev=False, formatter_class=formatter)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder of a training script")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where something is found")
    args = parser.parse_args(argv)
    found = 0
    try:
        for folder in args.runs:
            run = read_record(folder)
            findings, notes = examine(run)
            found += len(findings)
            print(report(folder, run, findings, notes))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if args.strict and found else 0


if __name__ == "__main__":
    raise SystemExit(main())
