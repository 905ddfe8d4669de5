"""One HTML file to look at: the curves and groups of training runs, and what a judge's scores are worth.

    python -m taosr1.evaluation.report runs/thinker-grpo --out report.html
    python -m taosr1.evaluation.report seed-0/sft seed-1/sft seed-2/sft --out sft.html
    python -m taosr1.evaluation.report scored.jsonl other.jsonl --out report.html

Reads run folders of train/ and files of infer/score.py or infer/explain.py, as many as are given. Runs that differ only
in their seed are one curve with a band; runs of one stage share their axes, runs of two stages never
do; score files stand side by side, and where they hold the same pairs their differences are paired.

A run shows its curves, what `taosr1.evaluation.doctor` finds, what it cost, and its groups step by step (rewards,
advantages, why they were dropped). Scores show every metric with its interval over queries, per grade and per kind of
query, the confusion matrix, calibration before and after a temperature, CumPT's tiers over beta with the one that was
served, and every row with its reasons, to filter, sort and search. What an input lacks is left out, and the page says
so.

The file needs no network, and its Content-Security-Policy forbids it; texts of the data stay text. The same inputs give
the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from taosr1.data.flags import ReadFlags
from taosr1.evaluation.curves import METRICS_FILE, RunCurves, read_run
from taosr1.evaluation.report.html import page, tag
from taosr1.evaluation.report.measures import Measured, measure
from taosr1.evaluation.report.of_runs import runs_part
from taosr1.evaluation.report.of_scores import scores_part
from taosr1.evaluation.scores import read_scores
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import replace_file
from taosr1.runtime.messages import counted, visible
from taosr1.runtime.out_paths import out_problems, same_path
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags):
    inputs: tuple[str, ...] = option((), "run folders, files of infer/score.py or infer/explain.py", positional=True)
    out: str = option("report.html", "the HTML file to write")
    rows: int = option(5000, "rows of a score file that can be looked at, the wrong ones first (0: all)")
    groups: int = option(2000, "groups of a run that can be looked at, the first ones of each step (0: all)")
    bootstrap: int = option(1000, "bootstrap resamples of queries (0: no intervals)")
    seed: int = option(0, "seed of the bootstrap")

    def __post_init__(self) -> None:
        check([
            (not self.inputs, "expected run folders or score files: python -m taosr1.evaluation.report runs/mine"),
            (len(set(self.inputs)) < len(self.inputs), "an input is named twice: give each once"),
            (bool(self.out) and not self.out.lower().endswith((".html", ".htm")),
             f"--out is {self.out}, expected a name ending in .html"),
            *((same_path(self.out, name), f"--out {self.out} is an input: it would be overwritten")
              for name in self.inputs),
            *out_problems(self.out),
            *at_least(self, rows=0, groups=0, bootstrap=0),
        ])  # fmt: skip


def read_inputs(config: Config) -> tuple[list[RunCurves], list[Measured]]:
    """The runs and the measured score files, each in the order given.

    Raises: FileNotFoundError; ValueError for a folder that is no run, and for rows as `read_scores`.
    """
    runs, scores = [], []
    for name in config.inputs:
        path = Path(name)
        if path.is_dir():
            if not (path / METRICS_FILE).is_file():
                raise ValueError(
                    f"{name} is a folder without {METRICS_FILE}: give a run folder of train/, or the score files in it"
                )
            runs.append(read_run(path))
        else:
            rows = read_scores(name, config, flag="SCORES", need_gold=False, need_probs=False)
            scores.append(measure(name, rows, bootstrap=config.bootstrap, seed=config.seed))
    return runs, scores


def main(argv: list[str] | None = None) -> Path:
    """Returns the file that was written."""
    config = parse_config(Config, __doc__, argv)
    refuse_overwriting(config.out, config.overwrite)
    runs, scores = read_inputs(config)
    parts = runs_part(runs, config.groups) + scores_part(scores, config.rows, config.bootstrap, config.seed)
    notes = [note for run in runs for note in run.notes]
    notes += [f"{each.name}: {what}" for each in scores for what in each.missing]
    notes += [note for part in parts for note in part.notes]
    title = ", ".join(config.inputs)
    text = page(title, parts, [tag("li", note) for note in notes])
    path = Path(config.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))
    size = path.stat().st_size / 2**20
    print(f"{counted(len(runs), 'run')}, {counted(len(scores), 'score file')} -> {visible(config.out)} ({size:.1f} MB)")
    for note in notes:
        print(f"note: {visible(note)}")
    return path


if __name__ == "__main__":
    run_main(main, Config)
