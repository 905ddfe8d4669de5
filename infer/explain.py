"""Judge one pair and explain it: grade, tier, probabilities, and the chain of thought.

    python infer/explain.py "travel mug but not steel" "Norvell travel mug steel insulated black" --price '$20'
    python infer/explain.py "rain jacket cheaper than Valmont" "Galden rain jacket navy cotton size small" --price '$20'
    python infer/explain.py --data pairs.jsonl --limit 3 --out explained.jsonl

A judge that answers first gives its grade and probabilities from one prefill and then writes its reasons for that
grade; a thinker reasons first and ends with its grade, so it has no probabilities. Control characters are escaped in
everything that is printed: a product title cannot control your terminal.

--out holds one explanation a line: the input's columns (its `grade` stays), `pred_grade`, `tier`, `probs`,
`label_mass`, `score` and `prompt_sha` as infer/score.py writes them, `reply`, `finished`, `well_formed`, and the grades
that its reasons come to: `decision` (its Decision line) and `implied` (its steps, under the rules).

After an interruption the same command continues: finished explanations are kept in OUT.parts, and are not printed
again (see taosr1/runtime/chunked_job.py).

If the query begins with a dash, write it after `--`, behind all flags.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import judgement_to_dict
from taosr1.data.predictions import without_prediction
from taosr1.data.sources import load_pairs
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import local_device, this_rank
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.messages import visible
from taosr1.runtime.out_paths import out_problems, same_path
from taosr1.runtime.outputs import STANDARD, OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import (
    MODEL_HELP,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
)
from taosr1.serving.explain import Explanation
from taosr1.serving.rows import prediction
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS
from taosr1.task.prompt_flags import PromptFlags, prompt_problems

EXAMPLE = 'python infer/explain.py "travel mug but not steel" "Norvell travel mug steel insulated black"'

Pair = tuple[dict, Judgement]  # a row as it is in the file, and as the judge reads it


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    query: str = option("", "what the shopper typed", positional=True)
    title: str = option("", "the product's title", positional=True)
    brand: str = option("", "the product's brand")
    attributes: str = option("", 'its attributes, "name: value; name: value"')
    category: str = option("", 'its category, "A > B"')
    description: str = option("", "its description")
    price: str = option("", "its price, as shown in the shop")
    data: str = option("", "explain the rows of this file (or synthetic:POOL) instead of one pair")
    limit: int = option(5, "rows of --data explained (0: all)")
    split: str = option("", "keep only the rows of --data whose 'split' column says this")
    out: str = option("", "also write the explanations here: .jsonl, .jsonl.gz, or - (stdout, instead of text)")
    model: str = option("", MODEL_HELP)
    beta: float | None = option(None, "CumPT: smaller is more generous; none: the checkpoint's tiering.json, else 0.5")
    temperature_scaling: str = option(
        "stored",
        "stored: scale probabilities by the checkpoint's calibration.json, where it has one; off: leave them unscaled",
        TEMPERATURE_SCALING,
    )
    max_new_tokens: int = option(128, "longest reply")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the embedded shop (the replies themselves are not random)")

    def __post_init__(self) -> None:
        pair = bool(self.query.strip() and self.title.strip())
        named = [f"--{name}" for name in ITEM_FIELDS[1:] if getattr(self, name)]
        check([
            (not pair and not self.data, f"expected a query and a title: {EXAMPLE} (or --data FILE)"),
            (bool(self.data and (self.query or self.title)),
             "--data brings its own queries and titles: leave the others out"),
            (bool(self.data and named), f"--data brings its own fields: leave out {', '.join(named)}"),
            (self.out not in ("", STANDARD) and not self.out.endswith((".jsonl", ".jsonl.gz")),
             f"--out is {self.out!r}, expected a name ending in .jsonl or .jsonl.gz, or - for the standard output"),
            (self.out not in ("", STANDARD) and same_path(self.out, self.data),
             f"--out {self.out} is --data: it would be overwritten"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            *out_problems(self.out, required=False, standard=True),
            *prompt_problems(self),
            *at_least(self, limit=0, max_new_tokens=1),
        ])  # fmt: skip


def read_pairs(config: Config) -> list[Pair]:
    """The rows of --data, as they are in the file and as the judge reads them; or the one pair on the command line."""
    if config.data:
        settings = {"seed": config.seed, "split": config.split, "limit": config.limit}
        return load_pairs(config.data, config, need_grade=False, **settings)
    row = Judgement(query=config.query, **{name: getattr(config, name) for name in ITEM_FIELDS})
    return [(judgement_to_dict(row), row)]


def output_row(row: dict, found: Explanation, wording: str) -> dict:
    """A row of --out: the input's columns, the prediction, the reply and what its reasons come to."""
    row, _ = without_prediction(row)
    names = {"reply": "reply", "finished": "finished", "well_formed": "well_formed"}
    names |= {"decision": "decision_grade", "implied": "implied_grade"}
    return {**row, **prediction(found, wording), **{name: getattr(found, field) for name, field in names.items()}}


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    refuse_overwriting(config.out, config.overwrite)
    pairs = read_pairs(config)
    device = local_device(config.device, this_rank())
    settings = {"dtype": config.dtype, "device": device, "plain": config.plain}
    settings |= {"seed": config.seed, "max_new_tokens": config.max_new_tokens}
    name, model = open_judge(config.model, orders=("post-cot", "pre-cot"), asked=config, **settings)
    if config.data:
        say_data([row for _, row in pairs], model)
    thinks = model.prompt.order == "pre-cot"
    if thinks and config.beta is not None:
        reason = "reasons before it answers and has no label probabilities"
        raise ValueError(f"--beta: --model {name} {reason}, so CumPT cannot be used")
    unread = [field for field in ITEM_FIELDS if getattr(config, field) and field not in model.prompt.columns]
    if unread:
        read = ", ".join(model.prompt.columns)
        print(f"note: this judge reads only {read}; {', '.join(unread)} is ignored", file=sys.stderr)
    temperature = None if thinks else chosen_temperature(name, config.temperature_scaling)
    judge = Judge.serving(name, model, beta=config.beta, temperature=temperature)
    said_on = sys.stderr if config.out == STANDARD else sys.stdout
    print(f"judge       {visible(name)}", file=said_on)

    def work(chunk: list[Pair], start: int) -> list[dict]:
        ((raw, row),) = chunk
        found = judge.explain(row, max_new_tokens=config.max_new_tokens)
        print(("\n" if start else "") + found.text, file=said_on, flush=True)
        return [output_row(raw, found, model.prompt.wording_sha256)]

    stored, identity = "" if config.out == STANDARD else config.out, {}
    if stored:
        digest = model_digest(model.model, model.tokenizer, model.prompt)
        facts = {"judge": digest, "served": (judge.beta, judge.temperature)}
        identity = job_identity("explain", config, (raw for raw, _ in pairs), **facts)
    shown = said_on.isatty() or said_on is sys.stderr  # explanations that appear beside a bar do what it does
    more = {"overwrite": config.overwrite, "silent": shown or len(pairs) == 1}
    with run_in_chunks(stored, identity, pairs, 1, work, "explain", **more) as explained:
        if explained is None:
            return []
        explained = list(explained)
        if config.out:
            write_jsonl(config.out, explained)
    return explained


if __name__ == "__main__":
    run_main(main, Config)
