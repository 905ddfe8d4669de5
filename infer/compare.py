"""Compare two judges on the same pairs: what changes from A to B, how sure that is, and which pairs changed.

    python infer/score.py --model bundled --data rows.csv --out old.jsonl
    python infer/score.py --model runs/mine --data rows.csv --out new.jsonl
    python infer/compare.py old.jsonl new.jsonl                     # two outputs of infer/score.py
    python infer/compare.py old.jsonl runs/mine                     # runs/mine judges the rows of old.jsonl
    python infer/compare.py bundled runs/mine --data rows.csv --out compared.json
    python infer/compare.py old.jsonl new.jsonl --fail-worse 0 --fail-under 80      # in CI
    python infer/compare.py old.jsonl new.jsonl --rank "desk lamp" --more bundled   # one list, as each orders it

A and B are each a score file, or a judge as --model of infer/score.py takes it. Rows are paired by query and product,
whatever their order. A pair that one side lacks, judged twice, or has with another text or gold grade is an error;
--max-unpaired N leaves up to N of them out and counts them. Where no row has a gold grade, changed pairs, tier moves
and the agreement of A and B are shown alone.

Against gold: differences B - A with 95 % intervals from a bootstrap over queries (both judges get the same resamples)
and sign tests over queries; by kind of query and by gold grade; fixed and broken pairs. Lists, each judge's order of a
query's products, its first --k of them:
    GSB             share of queries whose list is better in B (Good, by nDCG) minus that of worse ones (Bad)
    item goodrate   share of Excellent and Related products, mean over queries
    query goodrate  share of queries with a good page: at least --good-page of its products are Excellent or Related

--out NAME.json holds everything and all changed pairs, NAME.csv or NAME.jsonl (each also .gz) the changed pairs alone.

Exit codes: 0 compared; 1 an error that is explained; 2 a wrong flag; 3 --fail-under or --fail-worse says no.

Deviations from the paper:
1. Its GSB and query goodrate are verdicts of people about live pages. Here the gold grades of the lists decide.
2. Its goodrates are of pages that a search engine shows; here a list is the graded products of a query.
"""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.rows import split_spec
from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.pairing import PAIR_BY, Side, pair_rows
from taosr1.evaluation.predict import predict
from taosr1.evaluation.scores import read_scores
from taosr1.evaluation.side_by_side import METRICS, Settings, compare
from taosr1.evaluation.side_by_side_text import ranked_lists, render_comparison, render_lists
from taosr1.evaluation.summary import Prediction, jsonable
from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import this_rank
from taosr1.runtime.files import write_json
from taosr1.runtime.messages import visible
from taosr1.runtime.out_paths import out_problems, same_path
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import open_judge
from taosr1.serving.formats import write_rows
from taosr1.serving.rows import DIGITS
from taosr1.task.grades import TIER_OF_GRADE
from taosr1.task.judgement import Judgement

FAILED = 3  # exit code of a gate that says no
FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".psv", ".txt", ".parquet", ".xlsx")
IS_A = "a score file (.jsonl, .csv, ...) or a judge: run, Hugging Face folder, hub id or bundled"


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags):
    a: str = option("", f"before: {IS_A}", positional=True)
    b: str = option("", "after: another one", positional=True)
    data: str = option("", "pairs that judges are asked about: a file or synthetic:POOL (none: the score file's)")
    split: str = option("", "keep only the rows whose 'split' column says this")
    limit: int = option(0, "ask judges about the first rows of --data only (0: all)")
    pair_by: str = option("auto", "ids: query_id and item_id; text: texts; auto: ids where every row has them", PAIR_BY)
    max_unpaired: int = option(0, "pairs to leave out that cannot be compared (all are counted) before giving up")
    k: int = option(10, "how many products of a list are looked at")
    good_page: float = option(0.5, "share of Excellent and Related products from which a page is a good one")
    show: int = option(20, "changed pairs that are printed (--out has all)")
    out: str = option("", "also write this: .json everything; .csv or .jsonl (also .gz) the changed pairs")
    metric: str = option("macro_f1", "what --fail-under and --fail-worse look at", tuple(METRICS))
    fail_under: float | None = option(None, "exit with 3 where B's --metric is below this (x 100)")
    fail_worse: float | None = option(
        None, "exit with 3 where the upper end of the interval of B - A is below this (x 100): 0 is surely worse"
    )
    rank: str = option("", "print only the list of this query (text or query_id) as each judge orders it")
    more: str = option("", "further score files or judges for --rank, separated by commas")
    bootstrap: int = option(1000, "bootstrap resamples of queries (0: no intervals)")
    max_new_tokens: int = option(128, "longest reply of a judge that reasons first")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the bootstrap and of the embedded shop")

    def __post_init__(self) -> None:
        judges = [name for name in self.named() if not is_scores(name)]
        limits = {"--fail-under": self.fail_under, "--fail-worse": self.fail_worse}
        gates = [flag for flag, limit in limits.items() if limit is not None]
        named = self.out.lower().removesuffix(".gz")
        check([
            (not (self.a and self.b), "expected A and B: python infer/compare.py old.jsonl new.jsonl"),
            (self.data and not judges, f"--data is for judges, and all of {', '.join(self.named())} are score files"),
            (not self.data and len(judges) == len(self.named()),
             "--data is missing: the pairs that the judges are asked about (graded ones, to compare with gold)"),
            (bool(self.more and not self.rank), "--more adds columns to a list: give --rank, the query"),
            (bool(self.rank and gates), f"--rank prints a list and measures nothing: leave out {' and '.join(gates)}"),
            (self.fail_worse is not None and not self.bootstrap,
             "--fail-worse looks at an interval, and --bootstrap 0 makes none"),
            (not 0 < self.good_page <= 1, f"--good-page is {self.good_page}, expected more than 0 and at most 1"),
            (bool(self.out) and not named.endswith((".json", ".csv", ".jsonl")),
             f"--out is {self.out!r}, expected a name ending in .json, .csv or .jsonl"),
            (bool(self.out) and self.out.lower().endswith(".json.gz"), "--out: .json is written as it is, without .gz"),
            (bool(self.rank and self.out) and not self.out.endswith(".json"), "--out of --rank is a .json file"),
            (bool(self.out) and any(same_path(self.out, name) for name in (*self.named(), self.data)),
             f"--out {self.out} is one of the files that are read: it would be overwritten"),
            *out_problems(self.out, required=False),
            *at_least(self, limit=0, max_unpaired=0, k=1, show=0, bootstrap=0, max_new_tokens=1),
        ])  # fmt: skip

    def named(self) -> list[str]:
        """A, B and those of --more."""
        return [self.a, self.b, *(split_spec(self.more) if self.more else [])]


def is_scores(name: str) -> bool:
    """Whether an argument names a score file and no judge, by its ending."""
    return name.lower().removesuffix(".gz").endswith(FILES)


# ---- Sides -----------------------------------------------------------------------------------------------------------


def read_side(name: str, flag: str, config: Config) -> Side:
    """A score file, gold grades or none, probabilities or (of a thinker) none."""
    pairs = read_scores(name, config, split=config.split, flag=flag, need_gold=False, need_probs=False)
    rows, predictions = zip(*pairs)
    return Side(name, rows, predictions)


def judged_side(spec: str, letter: str, rows: list[Judgement], config: Config) -> Side:
    """What a judge says, as infer/score.py serves it; a thinker decodes its reply."""
    settings = {"dtype": config.dtype, "device": config.device, "seed": config.seed, "plain": config.plain}
    try:
        name, model = open_judge(spec, **settings, max_new_tokens=config.max_new_tokens)
        judge = Judge.serving(name, model)
    except (FileNotFoundError, ValueError) as error:
        message = re.sub(rf"^(--)?model {re.escape(spec)}: ", "", str(error))  # the judge is named in front
        others = "--" in message and not message.startswith("--max-new-tokens")  # that one is this script's too
        hint = f" (its flags are those of infer/score.py, whose output can be {letter} too)" if others else ""
        raise type(error)(f"{letter}, {spec}: {message}{hint}") from error
    if model.prompt.order == "pre-cot":
        found = predict(model, rows, max_new_tokens=config.max_new_tokens)
        tiers = [TIER_OF_GRADE.get(prediction.grade or 0) for prediction in found]
        return Side(name, rows, [Prediction(one.grade, tier=tier) for one, tier in zip(found, tiers)])
    scores = judge.score_judgements(rows, progress=True)
    # Rounded as in a file, so that a judge and its own score file have the same order.
    probs = [tuple(round(value, DIGITS) for value in one.probs) for one in scores]
    columns = zip(scores, probs)
    return Side(name, rows, [Prediction(one.grade, found, one.label_mass, tier=one.tier) for one, found in columns])


def read_sides(config: Config) -> list[Side]:
    """A, B and those of --more. Files are read first: a bad row is reported before a model is loaded."""
    names = [(chr(ord("A") + place), name) for place, name in enumerate(config.named())]
    files = {letter: read_side(name, letter, config) for letter, name in names if is_scores(name)}
    if len(files) == len(names):
        return list(files.values())
    if config.data:
        settings = {"seed": config.seed, "split": config.split, "limit": config.limit}
        rows = load_rows(config.data, config, **settings)
    else:
        rows = list(next(iter(files.values())).rows)
    return [files.get(letter) or judged_side(name, letter, rows, config) for letter, name in names]


# ---- Gates -----------------------------------------------------------------------------------------------------------


def gate(report: dict, config: Config) -> list[str]:
    """Why a CI should stop, [] where it should not.

    Raises: ValueError where --metric has no value, or no interval: a gate never passes for want of a number.
    """
    if config.fail_under is None and config.fail_worse is None:
        return []
    if not report["metrics"]:
        raise ValueError(
            "--fail-under and --fail-worse need gold grades, and no pair has one: score rows with a 'grade' column"
        )
    found, title, reasons = report["metrics"][config.metric], METRICS[config.metric].format(k=config.k), []
    value, high = found["b"], found["difference"]["high"]
    if config.fail_under is not None:
        if value is None:
            raise ValueError(f"--fail-under: {title} of B is undefined on these pairs (--metric chooses another)")
        if 100 * value < config.fail_under:
            reasons.append(f"{title} of B is {100 * value:.2f}, under --fail-under {config.fail_under:g}")
    if config.fail_worse is not None:
        if high is None:
            raise ValueError(f"--fail-worse: {title} has no interval over {report['queries']} queries: give more rows")
        if 100 * high < config.fail_worse:
            interval = f"the interval of B - A ends at {100 * high:+.2f}"
            reasons.append(f"{title}: {interval}, under --fail-worse {config.fail_worse:g}")
    return reasons


def write(report: dict, config: Config) -> None:
    """--out, in the format of its name."""
    if config.out.endswith(".json"):
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out), report)
        return
    changed = report["changed"]
    form = "csv" if ".csv" in config.out.lower()[-7:] else "jsonl"
    columns = list(changed[0]) if changed else ["change"]
    write_rows(config.out, form, changed, columns, all(str(pair).isascii() for pair in changed))


def main(argv: list[str] | None = None) -> dict:
    """Returns the report. Raises: SystemExit(3) after all is written, where a gate says no."""
    config = parse_config(Config, __doc__, argv)
    if (world := this_rank().world) > 1:
        raise ValueError(f"infer/compare.py is one process, this is one of {world}: start it without torchrun")
    refuse_overwriting(config.out, config.overwrite)
    paired = pair_rows(read_sides(config), config.pair_by, config.max_unpaired)
    if config.rank:
        lists = ranked_lists(paired, config.rank)
        for note in paired.notes:
            print(f"note: {note}", file=sys.stderr)
        print(render_lists(lists, config.k, shutil.get_terminal_size((120, 24)).columns))
        report = {"lists": lists, "unpaired": paired.unpaired, "notes": paired.notes}
        failed = []
    else:
        settings = Settings(config.k, config.good_page, config.bootstrap, config.seed)
        report = jsonable(compare(paired, settings))
        print(render_comparison(report, config.show))
        failed = gate(report, config)
        report["gate"] = {"metric": config.metric, "failed": failed}
    if config.out:
        write(report, config)
        print(f"report -> {visible(config.out)}")
    for reason in failed:
        print(f"failed: {reason}", file=sys.stderr)
    if failed:
        sys.exit(FAILED)
    return report


if __name__ == "__main__":
    run_main(main, Config)
