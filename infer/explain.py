"""Judge one pair and explain it: grade, tier, probabilities, and the chain of thought.

    python infer/explain.py "boots not leather" "Norvell suede hiking boots"
    python infer/explain.py "kettle cheaper than Norvell" "Dulvy steel kettle" --price '$14' --model runs/student
    python infer/explain.py --data pairs.jsonl --limit 3 --out explained.jsonl

A judge that answers first gives its grade and probabilities from one prefill and then writes its reasons for that
grade; a thinker reasons first and ends with its grade, so it has no probabilities. Control characters are escaped in
everything that is printed: a product title cannot control your terminal.

If the query begins with a dash, write it after `--`, behind all flags.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

import torch

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import judgement_to_dict
from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES, JudgeModel
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.jsonl import write_jsonl
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import (
    DEFAULT_BETA,
    MODEL_HELP,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
    stored_beta,
)
from taosr1.serving.scorer import score_prompts
from taosr1.task.grades import GRADES, TIER_OF_GRADE, grade_name
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import ITEM_FIELDS, parse_reply
from taosr1.task.rules import implied_grade, load_rules

EXAMPLE = 'python infer/explain.py "boots not leather" "suede hiking boots"'
ZERO_WIDTH_JOINER = "\u200d"  # a format character, but half of all emoji are made with it


@dataclass(frozen=True)
class Config(ReadFlags):
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
    out: str = option("", "also write the explanations to this file, .jsonl or .jsonl.gz")
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
            (bool(self.out) and not self.out.endswith((".jsonl", ".jsonl.gz")),
             f"--out is {self.out!r}, expected a name ending in .jsonl or .jsonl.gz"),
            (bool(self.out and self.data) and Path(self.out).resolve() == Path(self.data).resolve(),
             f"--out {self.out} is --data: it would be overwritten"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            *at_least(self, limit=0, max_new_tokens=1),
        ])  # fmt: skip


def read_pairs(config: Config) -> list[Judgement]:
    """The rows of --data, or the one pair on the command line."""
    if config.data:
        limits = {"limit": config.limit}
        return load_rows(config.data, config, seed=config.seed, split=config.split, need_grade=False, **limits)
    return [Judgement(query=config.query, **{name: getattr(config, name) for name in ITEM_FIELDS})]


def explain(judge: JudgeModel, row: Judgement, beta: float, temperature: float, max_new_tokens: int) -> dict:
    """One pair's `grade`, `tier`, `probs`, `label_mass`, `reply` and the grades its reasoning gives; None if unknown.

    `decision` is the grade on its Decision line, `implied` the one that its steps imply under the rules.
    """
    prompt = judge.prompts([row])[0]
    found: dict = {"grade": None, "tier": None, "probs": None, "label_mass": None}
    first_token = None
    if judge.prompt.order != "pre-cot":
        score = score_prompts(judge, [prompt], beta=beta, temperature=temperature)[0]
        found |= {"grade": score.grade, "tier": score.tier, "probs": list(score.probs), "label_mass": score.label_mass}
        # The reply is made to begin with the grade that is shown, also where a token that is no label is more probable.
        first_token = torch.tensor([judge.tokenizer.label_ids[score.grade - GRADES[0]]])
    if judge.prompt.order == "label":
        return found | {"reply": "", "finished": True, "well_formed": True, "decision": None, "implied": None}
    rollouts = judge.engine.generate(
        judge.model, [prompt], max_new_tokens=max_new_tokens, temperature=0, stop_ids=judge.tokenizer.eos_ids,
        first_tokens=first_token,
    )  # fmt: skip
    text = judge.reply_text(rollouts.replies()[0])
    reply = parse_reply(text, judge.prompt.order)
    if judge.prompt.order == "pre-cot" and reply.grade is not None:
        found |= {"grade": reply.grade, "tier": TIER_OF_GRADE[reply.grade]}
    return found | {
        "reply": text,
        "finished": bool(rollouts.finished[0]),
        "well_formed": reply.well_formed,
        "decision": reply.decision,
        "implied": implied_grade(reply, load_rules()),
    }


# ---- As text ---------------------------------------------------------------------------------------------------------


def visible(text: str) -> str:
    """Text that is safe to print: control, format and line-breaking characters as escapes, everything else as it is."""
    shown = []
    for character in text:
        control = unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"
        escape = control and character != ZERO_WIDTH_JOINER
        shown.append(character.encode("unicode_escape").decode() if escape else character)
    return "".join(shown)


def render(row: Judgement, found: dict, order: str, beta: float) -> str:
    """One explanation as text, in the order in which the judge gives it."""
    texts = [(name, getattr(row, name)) for name in ("query", *ITEM_FIELDS)]
    lines = [f"{name:<11} {visible(text)}" for name, text in texts if text]
    verdict = [f"grade       {grade_name(found['grade'])}"] if found["grade"] else []
    if found["probs"]:
        shown = "  ".join(f"{grade_name(grade)} {found['probs'][grade - 1]:.3f}" for grade in GRADES[::-1])
        verdict.append(f"tier        {found['tier']} (CumPT, beta {beta:.4g})")
        verdict += [f"probability {shown}", f"label mass  {found['label_mass']:.3f}"]
    elif found["grade"]:
        verdict.append(f"tier        {found['tier']}")
    steps = found["reply"].split("\n")[1 if order == "post-cot" else 0 :]
    reasons = [f"  {visible(line)}" for line in steps if line.strip()]
    lines += reasons + verdict if order == "pre-cot" else verdict + reasons
    return "\n".join(lines + [f"note: {note}" for note in notes(found, order)])


def notes(found: dict, order: str) -> list[str]:
    """Warnings about the answer."""
    grade, warnings = found["grade"], []
    if grade is None:
        warnings.append("no grade: the reply cannot be parsed")
    if found["label_mass"] is not None and found["label_mass"] < 0.5:
        warnings.append("low label mass: this model rarely answers with a label, so the grade means little")
    if not found["finished"]:
        warnings.append("the reply was cut: raise --max-new-tokens")
    elif not found["well_formed"] and grade is not None:
        warnings.append("the reasoning does not have the five lines it should have")
    if order == "label":
        warnings.append("this judge was trained to answer with the grade alone: it gives no reasons")
    for name, what in (("decision", "its Decision line says"), ("implied", "by the rules its steps imply")):
        if grade is not None and found[name] is not None and found[name] != grade:
            warnings.append(f"reasoning and grade disagree: {what} {grade_name(found[name])}")
    return warnings


def main(argv: list[str] | None = None) -> list[dict]:
    config = parse_config(Config, __doc__, argv)
    rows = read_pairs(config)
    settings = {"dtype": config.dtype, "device": config.device, "plain": config.plain}
    name, judge = open_judge(config.model, orders=("post-cot", "pre-cot"), seed=config.seed, **settings)
    if judge.prompt.order == "pre-cot" and config.beta is not None:
        reason = "reasons before it answers and has no label probabilities"
        raise ValueError(f"--beta: --model {name} {reason}, so CumPT cannot be used")
    unread = [field for field in ITEM_FIELDS if getattr(config, field) and field not in judge.prompt.fields]
    if unread:
        read = ", ".join(judge.prompt.fields)
        print(f"note: this judge reads only {read}; {', '.join(unread)} is ignored", file=sys.stderr)
    temperature = 1.0 if judge.prompt.order == "pre-cot" else chosen_temperature(name, config.temperature_scaling)
    beta = config.beta or stored_beta(name, temperature) or DEFAULT_BETA
    explained = []
    for index, row in enumerate(rows):
        found = explain(judge, row, beta, temperature, config.max_new_tokens)
        print(("\n" if index else f"judge       {visible(name)}\n") + render(row, found, judge.prompt.order, beta))
        gold = {"gold_grade": row.grade} if row.grade is not None and "gold_grade" not in row.extra else {}
        explained.append({**judgement_to_dict(row), **gold, **found})
    if config.out:
        write_jsonl(config.out, explained)
    return explained


if __name__ == "__main__":
    run_main(main)
