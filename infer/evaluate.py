"""Measure a judge on graded pairs: F1, tiers, calibration, kinds of query, hallucination, ranking, cost.

    python infer/evaluate.py                                                   # the furthest trained run, on the world's test pool
    python infer/evaluate.py --model runs/thinker-grpo --data rows.jsonl --out report.json
    python infer/evaluate.py --model runs/student --data rows.jsonl --split test --dev rows.jsonl --dev-split train --save-beta
    python infer/evaluate.py --model runs/student --data rows.jsonl --split test --dev rows.jsonl --dev-split train --fit-temperature
    python infer/evaluate.py --scores scored.jsonl                             # what infer/score.py wrote, without a model

Prints tables; --out writes the same and more as JSON. Intervals are bootstraps over queries, since the pairs of one
query are not independent. Nothing is fitted on --data: CumPT's beta is --beta, else fitted on --dev, else the one stored
beside the weights (tiering.json, which --save-beta writes), else 0.5.

--fit-temperature finds on --dev the one number that makes the four probabilities as sure as they are right, fits beta on
the probabilities so scaled, stores both beside the weights (calibration.json, tiering.json) and prints ECE, Brier score
and NLL on --data before and after. No grade changes. infer/score.py and infer/explain.py then scale as well, and so does
this script: --temperature-scaling off says no.

A judge that answers first is read from one prefill; --explain decodes its chain of thought too and compares the two. A
thinker always decodes, has no label probabilities and so neither calibration nor CumPT.

With --out, the same command continues a run of a model that was killed: finished predictions wait in OUT.parts. Under torchrun ranks share the
rows, and the last to finish measures them all (taosr1/runtime/chunked_job.py says how); its seconds are those of all ranks together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.duplicates import Duplicates
from taosr1.data.esci import keep_split
from taosr1.data.judgements import Judgement, parse_judgement, read_rows
from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.predict import Cost, predict_with_cost
from taosr1.evaluation.ranking import brier_score, expected_calibration_error
from taosr1.evaluation.report import Prediction, evaluate_predictions, render_report
from taosr1.judge import SERVING_DTYPE_HELP, SERVING_DTYPES, Judge
from taosr1.model.io.digest import model_digest
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import check, option, parse_config
from taosr1.runtime.distributed import Ranks, local_device, this_rank
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main
from taosr1.serving.calibration import TEMPERATURES, apply_temperature, fit_temperature, mean_nll
from taosr1.serving.deployed import (
    DEFAULT_BETA,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
    store_beta,
    store_temperature,
    stored_beta,
)
from taosr1.serving.tiering import cumulative_tier, fit_beta
from taosr1.task.grades import GRADES, TIERS
from taosr1.task.probabilities import checked_probs

ROWS_AT_A_TIME = 512
ESCI_NOTE = "ESCI's labels E, S, C, I are read as grades 4, 3, 2, 1: an assumption, not the definition the grades were made for."


@dataclass(frozen=True)
class Config:
    model: str = option("", "a run folder, a Hugging Face folder or hub id; none: the furthest trained run under runs/")
    data: str = option("synthetic:test", "graded pairs to measure on: a .jsonl/.csv[.gz] or .parquet file, or synthetic:POOL")
    scores: str = option("", "measure this output of infer/score.py instead of running a model")
    out: str = option("", "JSON file for the whole report")
    beta: float | None = option(None, "CumPT's beta, where it is known already")
    dev: str = option("", "graded pairs to fit beta on, such as synthetic:dev")
    save_beta: bool = option(False, "store the beta fitted on --dev beside the weights (tiering.json), where infer/score.py finds it")
    fit_temperature: bool = option(
        False, "fit a temperature on --dev and store it (calibration.json) with the beta that goes with it, where infer/score.py finds both"
    )
    temperature_scaling: str = option(
        "stored", "stored: divide log-probabilities by the checkpoint's temperature, where it has one; off: take them as they are",
        TEMPERATURE_SCALING,
    )  # fmt: skip
    explain: bool = option(False, "also decode the chain of thought of a judge that answers first, and measure hallucination")
    max_new_tokens: int = option(128, "longest reply where one is decoded")
    bootstrap: int = option(1000, "bootstrap resamples of queries (0: no intervals)")
    split: str = option("", "keep only the rows of --data or --scores whose 'split' column says this (ESCI: test)")
    dev_split: str = option("", "the same for --dev (ESCI: train)")
    limit: int = option(0, "measure only the first rows (0: all)")
    max_bad_rows: int = option(0, "unreadable rows to skip (all are counted, the first 20 named) before giving up")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the bootstrap and of the embedded shop")

    def __post_init__(self) -> None:
        check([
            (bool(self.scores and self.model), "--scores are measured without a model: leave out --model"),
            (bool(self.scores and self.dev), "--dev needs a model: fit beta with --model, store it with --save-beta, then score and measure"),
            (bool(self.scores and self.explain), "--explain needs a model: the chains of thought are not in --scores"),
            (self.save_beta and not self.dev, "--save-beta stores the beta fitted on --dev: give --dev"),
            (self.fit_temperature and not self.dev, "--fit-temperature fits on other rows than it measures: give --dev"),
            (self.fit_temperature and self.temperature_scaling == "off", "--fit-temperature and --temperature-scaling off contradict: leave one out"),
            (bool(self.scores) and self.temperature_scaling == "off",
             "--temperature-scaling off needs a model: the probabilities in --scores are as infer/score.py wrote them"),
            (bool(self.dev) and self.beta is not None, "--beta and --dev both decide beta: give one of them"),
            (bool(self.dev) and (self.dev, self.dev_split) == (self.data, self.split),
             f"--dev is --data ({self.dev}): beta would be fitted on what it is measured on; give other rows, or --split and --dev-split"),
            (self.beta is not None and not 0 < self.beta <= 1, f"--beta is {self.beta}, expected more than 0 and at most 1"),
            (self.bootstrap < 0, f"--bootstrap is {self.bootstrap}, expected 0 or more"),
            (self.limit < 0, f"--limit is {self.limit}, expected 0 or more"),
            (self.max_new_tokens < 1, f"--max-new-tokens is {self.max_new_tokens}, expected at least 1"),
            (Path(self.out).is_dir() and bool(self.out), f"--out {self.out} is a folder, expected a file name"),
        ])  # fmt: skip


# ---- predictions -----------------------------------------------------------------------------------------------------


def predict_chunk(judge: Judge, dev_rows: int, config: Config, rows: list[Judgement], start: int) -> list[dict]:
    """One object: a chunk's predictions, their cost, and how long they took. Of the rows of --dev, which come first,
    only probabilities are needed."""
    began, explain = time.perf_counter(), config.explain and start >= dev_rows
    predictions, cost = predict_with_cost(judge, rows, explain=explain, max_new_tokens=config.max_new_tokens)
    found = [vars(prediction) for prediction in predictions]
    return [{"predictions": found, "cost": vars(cost), "seconds": time.perf_counter() - began}]


def merged(chunks: Iterable[dict], dev_rows: int) -> tuple[list[Prediction], Cost, float]:
    """The predictions of --dev and then of --data; cost and seconds are those of --data."""
    predictions: list[Prediction] = []
    cost, seconds = Cost(), 0.0
    for chunk in chunks:
        if len(predictions) >= dev_rows:
            cost, seconds = cost + Cost(**chunk["cost"]), seconds + chunk["seconds"]
        for found in chunk["predictions"]:
            predictions.append(Prediction(**{**found, "probs": found["probs"] and tuple(found["probs"])}))
    return predictions, cost, seconds


@dataclass(frozen=True)
class Deployed:
    """What is done to label probabilities before they are served, and where each number is from; beta is None until it is fitted."""

    temperature: float
    temperature_from: str
    beta: float | None
    beta_from: str


def choose_deployed(name: str, config: Config) -> Deployed:
    """Temperature and beta without a look at a row: the flag's, else the checkpoint's, else the default. --dev has the last word."""
    temperature = 1.0 if config.fit_temperature else chosen_temperature(name, config.temperature_scaling)
    source = "calibration.json" if temperature != 1 else "none"
    if config.dev or config.beta is not None:
        return Deployed(temperature, source, config.beta, "--beta")
    found = stored_beta(name, temperature)
    return Deployed(temperature, source, *((DEFAULT_BETA, "default") if found is None else (found, "tiering.json")))


def load_dev(rows: Sequence[Judgement], config: Config) -> list[Judgement]:
    """The rows of --dev; warns where they are measured as well."""
    if not config.dev:
        return []
    dev = load_rows(config.dev, seed=config.seed, split=config.dev_split, max_bad_rows=config.max_bad_rows, need_grade=True)
    measured = {(row.query, row.title, row.item_id) for row in rows}
    shared = sum((row.query, row.title, row.item_id) in measured for row in dev)
    if shared:
        fitted = "temperature and beta have" if config.fit_temperature else "beta has"
        print(f"warning: {shared} of {len(dev)} pairs of --dev are in --data too: {fitted} seen what it is measured on", file=sys.stderr)
    return dev


def fit_deployed(name: str, dev: Sequence[Judgement], predictions: Sequence[Prediction], config: Config, chosen: Deployed) -> Deployed:
    """Beta, and with --fit-temperature the temperature before it, fitted on --dev; stored where that is asked for."""
    temperature, temperature_from = chosen.temperature, chosen.temperature_from
    probs, gold = [prediction.probs for prediction in predictions], [row.grade for row in dev]
    source = config.dev + (f" split {config.dev_split}" if config.dev_split else "")
    if config.fit_temperature:
        temperature, temperature_from = fit_temperature(probs, gold), f"fitted on {source}"
        if temperature in TEMPERATURES:
            print(
                f"warning: the temperature is at the end of its range, {temperature:g}: --dev has too few rows ({len(dev)}), or the "
                "judge is always or never right there; fit on more rows",
                file=sys.stderr,
            )
    scaled = apply_temperature(probs, temperature)
    beta = fit_beta(scaled, gold)
    if config.fit_temperature:
        nll = {"nll_before": mean_nll(probs, gold), "nll_after": mean_nll(probs, gold, temperature)}
        print(f"temperature {temperature:.4g} -> {store_temperature(name, temperature, dev=source, rows=len(dev), **nll)}")
    if config.save_beta or config.fit_temperature:  # a beta of other probabilities would be wrong, so both are stored
        print(f"beta {beta:.4g} -> {store_beta(name, beta, temperature, fitted_on=source, rows=len(dev))}")
    return Deployed(temperature, temperature_from, beta, f"fitted on {source}")


def with_temperature(predictions: Sequence[Prediction], temperature: float) -> list[Prediction]:
    """The predictions of a judge that answers first, with scaled probabilities; their grades stay."""
    scaled = apply_temperature([prediction.probs for prediction in predictions], temperature)
    return [replace(prediction, probs=tuple(row)) for prediction, row in zip(predictions, scaled.tolist())]


def calibration_at(temperature: float, predictions: Sequence[Prediction], rows: Sequence[Judgement]) -> dict[str, float]:
    """How far probabilities at a temperature are from how often they are right, by three measures; lower is better."""
    probs, gold = [prediction.probs for prediction in predictions], [row.grade for row in rows]
    scaled = apply_temperature(probs, temperature)
    return {"ece": expected_calibration_error(scaled, gold), "brier": brier_score(scaled, gold), "nll": mean_nll(probs, gold, temperature)}


def with_tiers(predictions: Sequence[Prediction], beta: float) -> list[Prediction]:
    """The predictions with CumPT's tier, where they have probabilities."""
    known = [prediction.probs for prediction in predictions if prediction.probs is not None]
    tiers = iter(cumulative_tier(known, beta) if known else [])
    return [prediction if prediction.probs is None else replace(prediction, tier=next(tiers)) for prediction in predictions]


def run_judge(config: Config, ranks: Ranks) -> dict:
    """The report on a model, or {} on a rank that leaves the merging to another."""
    rows = load_rows(
        config.data, seed=config.seed, split=config.split, limit=config.limit, max_bad_rows=config.max_bad_rows, need_grade=True
    )
    name, judge = open_judge(config.model, dtype=config.dtype, device=local_device(config.device, ranks), seed=config.seed, plain=config.plain)
    thinker = judge.prompt.order == "pre-cot"
    if thinker and (config.dev or config.beta is not None):
        raise ValueError(f"--model {name} reasons before it answers and has no label probabilities: CumPT (--dev, --beta) cannot be used")
    if judge.prompt.order == "label" and config.explain:
        raise ValueError(f"--explain: --model {name} was trained to answer with the grade alone and has no chain of thought to decode")
    deployed = None if thinker else choose_deployed(name, config)
    dev = load_dev(rows, config)
    work = partial(predict_chunk, judge, len(dev), config)
    identity = evaluation_identity(judge, dev, rows, deployed, config) if config.out else {}
    with run_in_chunks(
        config.out, identity, [*dev, *rows], ROWS_AT_A_TIME, work, "evaluate", boundary=len(dev)
    ) as chunks:
        if chunks is None:
            return {}
        predictions, cost, seconds = merged(chunks, len(dev))
        if dev:
            deployed = fit_deployed(name, dev, predictions[: len(dev)], config, deployed)
        spent = {
            "prefills_per_row": cost.prefills / len(rows),
            "decoded_tok_per_row": cost.decoded_tok / len(rows),
            "seconds": seconds,
            "rows_per_s": len(rows) / seconds,
        }
        served, beta, about = as_deployed(rows, predictions[len(dev) :], deployed)
        head = {"model": name, "order": judge.prompt.order, "data": config.data, "split": config.split, **about, "cost": spent}
        return report_on(rows, served, beta, head, config)


def evaluation_identity(
    judge: Judge, dev: list[Judgement], rows: list[Judgement], deployed: Deployed | None, config: Config
) -> dict:
    """What the report depends on, for a job that is continued."""
    digest = model_digest(judge.model, judge.tokenizer, judge.prompt)
    facts = {"rows of dev": len(dev), "deployed": deployed and astuple(deployed), "judge": digest}
    facts["prompt_wording"] = judge.prompt.wording_sha256
    return job_identity("evaluate", config, [*dev, *rows], **facts)


def as_deployed(
    rows: Sequence[Judgement], predictions: list[Prediction], deployed: Deployed | None
) -> tuple[list[Prediction], float | None, dict]:
    """Predictions as they would be served, beta, and what the report says of the two; a thinker's are as they are."""
    if deployed is None:
        return predictions, None, {"beta_from": None, "temperature": None}
    about = {"beta_from": deployed.beta_from, "temperature": None}
    if deployed.temperature_from != "none":
        about["temperature"] = {
            "value": deployed.temperature,
            "from": deployed.temperature_from,
            "before": calibration_at(1.0, predictions, rows),
            "after": calibration_at(deployed.temperature, predictions, rows),
        }
        predictions = with_temperature(predictions, deployed.temperature)
    return with_tiers(predictions, deployed.beta), deployed.beta, about


def read_scores(config: Config) -> tuple[list[Judgement], list[Prediction], float | None, dict]:
    """The same from the output of infer/score.py. Its tiers stand, unless --beta asks for others."""
    rows: list[Judgement] = []
    predictions: list[Prediction] = []
    bad_rows = BadRows(config.scores, config.max_bad_rows)
    repeats = Duplicates(bad_rows)
    for line, row in read_rows(config.scores, bad_rows):
        try:
            pair = (_gold_judgement(row), _stored_prediction(row))
            repeats.add(line, pair[0])
        except ValueError as problem:
            bad_rows.add(line, problem)
        else:
            rows.append(pair[0])
            predictions.append(pair[1])
    if not rows:
        raise ValueError(f"{config.scores}: no rows in this file: check --scores")
    if config.split:
        kept = {id(row) for row in keep_split(rows, config.split)}
        rows, predictions = zip(*(pair for pair in zip(rows, predictions) if id(pair[0]) in kept))
    rows, predictions = list(rows)[: config.limit or None], list(predictions)[: config.limit or None]
    if config.beta is not None:
        predictions = with_tiers(predictions, config.beta)
    return rows, predictions, config.beta, {"scores": config.scores, "split": config.split, "cost": None}


def _gold_judgement(row: dict) -> Judgement:
    """The pair with the grade a person gave, which score.py moved to `gold_grade` (ESCI's rows hold their own label)."""
    judgement = parse_judgement({**row, "grade": row.get("gold_grade")})
    if judgement.grade is None:
        raise ValueError("field 'gold_grade' is missing: nothing to measure against; infer/score.py writes it for rows that had a grade")
    return judgement


def _stored_prediction(row: dict) -> Prediction:
    grade, tier, probs, mass = (row.get(name) for name in ("grade", "tier", "probs", "label_mass"))
    if isinstance(grade, bool) or grade not in GRADES:
        raise ValueError(f"field 'grade' is {shorten(repr(grade))}, expected the predicted grade 1-4")
    if tier not in TIERS:
        raise ValueError(f"field 'tier' is {shorten(repr(tier))}, expected one of {', '.join(TIERS)}")
    if not (isinstance(probs, list) and all(type(value) in (int, float) and abs(value) < 1e9 for value in probs)):  # no text, no bool, and no int too large for a float
        raise ValueError(f"field 'probs' is {shorten(repr(probs))}, expected four numbers: is this an output of infer/score.py?")
    if isinstance(mass, bool) or not isinstance(mass, (int, float)) or not 0 <= mass <= 1:
        raise ValueError(f"field 'label_mass' is {shorten(repr(mass))}, expected a number from 0 to 1")
    return Prediction(grade, tuple(checked_probs([probs])[0].tolist()), mass, tier=tier)


# ---- the report ------------------------------------------------------------------------------------------------------


def render_temperature(scaling: dict) -> str:
    """ECE (x 100), Brier score and NLL of the measured rows without and with the temperature."""
    lines = [f"temperature {scaling['value']:.4g} ({scaling['from']})", "                 ECE    Brier      NLL"]
    for title in ("before", "after"):
        part = scaling[title]
        lines.append(f"{title:<11}{100 * part['ece']:>9.2f}{part['brier']:>9.4f}{part['nll']:>9.4f}")
    return "\n".join(lines)


def report_on(rows: Sequence[Judgement], predictions: Sequence[Prediction], beta: float | None, head: dict, config: Config) -> dict:
    """Measure, print, and write to --out where there is one."""
    notes = [ESCI_NOTE] if any("esci_label" in row.extra for row in rows) else []
    measured = evaluate_predictions(rows, predictions, bootstrap=config.bootstrap, seed=config.seed, beta=beta)
    report = {**head, "notes": notes, **measured}
    print("\n".join([f"{head.get('model') or head['scores']} on {head.get('data', 'its own rows')} {config.split}".rstrip(), *notes]))
    print(render_report(report))
    if head.get("temperature"):
        print(render_temperature(head["temperature"]) + "\n")
    if head["cost"]:
        cost = head["cost"]
        print(
            f"cost: {cost['prefills_per_row']:.2f} prefills and {cost['decoded_tok_per_row']:.1f} decoded tokens per pair, "
            f"{cost['rows_per_s']:.0f} pairs/s on {config.device} ({config.dtype})"
        )
    if beta is not None:
        print(f"CumPT beta {beta:.4g} ({head.get('beta_from') or '--beta'})")
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out), report)
        print(f"report -> {config.out}")
    return report


def main(argv: list[str] | None = None) -> dict:
    """Returns the report, or {} on a rank that leaves the merging to another."""
    config, ranks = parse_config(Config, __doc__, argv), this_rank()
    if not config.scores:
        return run_judge(config, ranks)
    if ranks.world > 1:
        raise ValueError(f"--scores is read by one process, this is one of {ranks.world}: start it without torchrun")
    return report_on(*read_scores(config), config)


if __name__ == "__main__":
    run_main(main)
