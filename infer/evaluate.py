"""Measure a judge on graded pairs: F1, tiers, calibration, kinds of query, hallucination, ranking, cost.

    python infer/evaluate.py                                  # the newest finished run, on the test pool of the shop
    python infer/evaluate.py --model runs/thinker-grpo --data rows.jsonl --out report.json
    python infer/evaluate.py --model runs/student --data test.jsonl --dev dev.jsonl --save-beta
    python infer/evaluate.py --model runs/student --data test.jsonl --dev dev.jsonl --fit-temperature
    python infer/evaluate.py --model runs/student --data esci/ --split test --dev esci/ --dev-split train --save-beta
    python infer/evaluate.py --scores scored.jsonl            # the output of infer/score.py, without a model

Prints tables; --out writes the same and more as JSON. Intervals are bootstraps over queries, since the pairs of one
query are not independent. Nothing is fitted on --data: CumPT's beta is --beta, else fitted on --dev, else the one
stored beside the weights (tiering.json, which --save-beta writes), else 0.5.

--fit-temperature fits on --dev the temperature that brings the confidence of the label probabilities to their accuracy,
fits beta on the probabilities so scaled, stores both beside the weights (calibration.json, tiering.json) and prints
ECE, Brier score and NLL on --data before and after. No grade changes. From then on infer/score.py, infer/explain.py and
this script scale the probabilities too, unless --temperature-scaling is off.

A judge that answers first needs one prefill a pair; --explain also decodes its chain of thought and compares the two. A
thinker always decodes, has no label probabilities and so neither calibration nor CumPT.

With --out, the same command continues an interrupted run of a model: finished predictions are kept in OUT.parts. Under
torchrun ranks share the rows, and the last to finish measures them all (see taosr1/runtime/chunked_job.py); the seconds
are then those of all ranks together.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.queries import say_overlap
from taosr1.data.sources import load_rows
from taosr1.data.splits import say_trained_on
from taosr1.data.summary import say_data
from taosr1.engine import PLAIN_HELP
from taosr1.evaluation.predict import Cost, predict_with_cost
from taosr1.evaluation.ranking import brier_score, expected_calibration_error
from taosr1.evaluation.scores import read_scores
from taosr1.evaluation.summary import Prediction, evaluate_predictions, render_report
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES, JudgeModel
from taosr1.model.io.digest import model_digest
from taosr1.runtime.chunked_job import job_identity, run_in_chunks
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.distributed import Ranks, local_device, this_rank
from taosr1.runtime.files import write_json
from taosr1.runtime.out_paths import out_problems
from taosr1.runtime.outputs import OutFlags, refuse_overwriting
from taosr1.runtime.signals import run_main
from taosr1.serving.calibration import TEMPERATURES, apply_temperature, fit_temperature, mean_nll
from taosr1.serving.deployed import (
    DEFAULT_BETA,
    MODEL_HELP,
    TEMPERATURE_SCALING,
    chosen_temperature,
    open_judge,
    store_beta,
    store_temperature,
    stored_beta,
)
from taosr1.serving.tiering import cumulative_tier, fit_beta
from taosr1.task.judgement import Judgement
from taosr1.task.prompt_flags import PromptFlags, given, prompt_problems

ROWS_AT_A_TIME = 512
READ_AS = "ESCI's labels E, S, C, I are read as grades 4, 3, 2, 1"
ESCI_NOTE = f"{READ_AS}: an assumption, not the definition the grades were made for."


@dataclass(frozen=True)
class Config(OutFlags, ReadFlags, PromptFlags):
    model: str = option("", MODEL_HELP)
    data: str = option(
        "synthetic:test", "graded pairs to measure on: a .jsonl/.csv[.gz] or .parquet file, or synthetic:POOL"
    )
    scores: str = option("", "measure this output of infer/score.py instead of running a model")
    out: str = option("", "JSON file for the whole report")
    beta: float | None = option(None, "CumPT's beta, where it is known already")
    dev: str = option("", "graded pairs to fit beta on, such as synthetic:dev")
    save_beta: bool = option(False, "store the beta fitted on --dev beside the weights (tiering.json)")
    fit_temperature: bool = option(
        False, "fit a temperature on --dev and store it (calibration.json), with the beta that belongs to it"
    )
    temperature_scaling: str = option(
        "stored",
        "stored: divide log-probabilities by the checkpoint's temperature, where it has one; off: leave them unscaled",
        TEMPERATURE_SCALING,
    )
    explain: bool = option(False, "also decode a label-first judge's chain of thought, and measure hallucination")
    max_new_tokens: int = option(128, "longest reply where one is decoded")
    bootstrap: int = option(1000, "bootstrap resamples of queries (0: no intervals)")
    split: str = option("", "keep only the rows of --data or --scores whose 'split' column says this (ESCI: test)")
    dev_split: str = option("", "the same for --dev (ESCI: train)")
    limit: int = option(0, "measure only the first rows (0: all)")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    plain: bool = option(False, PLAIN_HELP)
    seed: int = option(0, "seed of the bootstrap and of the embedded shop")

    def __post_init__(self) -> None:
        same_rows = bool(self.dev) and (self.dev, self.dev_split) == (self.data, self.split)
        scaling_off = self.temperature_scaling == "off"
        check([
            (bool(self.scores and (self.model or given(self))),
             f"--scores are measured without a model: leave out --model{''.join(', ' + flag for flag in given(self))}"),
            (bool(self.scores and self.dev),
             "--dev needs a model: fit beta with --model, store it with --save-beta, then score and measure"),
            (bool(self.scores and self.explain), "--explain needs a model: --scores has no chains of thought"),
            (self.save_beta and not self.dev, "--save-beta stores the beta fitted on --dev: give --dev"),
            (self.fit_temperature and not self.dev,
             "--fit-temperature fits on other rows than it measures: give --dev"),
            (self.fit_temperature and scaling_off,
             "--fit-temperature and --temperature-scaling off contradict: leave one out"),
            (bool(self.scores) and scaling_off,
             "--temperature-scaling off needs a model: the probabilities in --scores are as infer/score.py wrote them"),
            (bool(self.dev) and self.beta is not None, "--beta and --dev both decide beta: give one of them"),
            (same_rows, f"--dev is --data ({self.dev}): beta would be fitted on what it is measured on; "
                        "give other rows, or --split and --dev-split"),
            (self.beta is not None and not 0 < self.beta <= 1,
             f"--beta is {self.beta}, expected more than 0 and at most 1"),
            *prompt_problems(self),
            *at_least(self, bootstrap=0, limit=0, max_new_tokens=1),
            *out_problems(self.out, required=False),
        ])  # fmt: skip


# ---- The rows of --dev, and predictions ------------------------------------------------------------------------------


def load_dev(rows: Sequence[Judgement], config: Config) -> list[Judgement]:
    """The rows of --dev; warns where they are in --data too."""
    if not config.dev:
        return []
    dev = load_rows(config.dev, config, seed=config.seed, split=config.dev_split, need_gold=True, flag="--dev")
    fitted = "temperature and beta are" if config.fit_temperature else "beta is"
    say_overlap(rows, dev, "--dev", f"{fitted} fitted on what is measured")
    return dev


def predict_chunk(judge: JudgeModel, rows: list[Judgement], explain: bool, config: Config) -> dict:
    """A chunk's predictions, their cost, and how long they took."""
    began = time.perf_counter()
    predictions, cost = predict_with_cost(judge, rows, explain=explain, max_new_tokens=config.max_new_tokens)
    seconds = time.perf_counter() - began
    return {"predictions": [vars(found) for found in predictions], "cost": vars(cost), "seconds": seconds}


def merge_chunks(chunks: Iterable[dict], dev_rows: int) -> tuple[list[Prediction], dict]:
    """The predictions of --dev and then of --data, and what those of --data cost."""
    predictions: list[Prediction] = []
    cost, seconds = Cost(), 0.0
    for chunk in chunks:
        if len(predictions) >= dev_rows:
            cost, seconds = cost + Cost(**chunk["cost"]), seconds + chunk["seconds"]
        for found in chunk["predictions"]:
            predictions.append(Prediction(**{**found, "probs": found["probs"] and tuple(found["probs"])}))
    rows = len(predictions) - dev_rows
    each = {"prefills_per_row": cost.prefills / rows, "decoded_tok_per_row": cost.decoded_tok / rows}
    return predictions, {**each, "seconds": seconds, "rows_per_s": rows / seconds}


# ---- Temperature and beta --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deployed:
    """What turns label probabilities into those that are served and into tiers, and where each number is from."""

    temperature: float
    temperature_from: str
    beta: float | None  # None until it is fitted on --dev
    beta_from: str


def choose_deployed(name: str, config: Config) -> Deployed:
    """Temperature and beta before any row is read: the flag's, else the checkpoint's, else the default."""
    temperature = 1.0 if config.fit_temperature else chosen_temperature(name, config.temperature_scaling)
    source = "calibration.json" if temperature != 1 else "none"
    if config.dev or config.beta is not None:
        return Deployed(temperature, source, config.beta, "--beta")
    beta = stored_beta(name, temperature)
    return Deployed(temperature, source, *((DEFAULT_BETA, "default") if beta is None else (beta, "tiering.json")))


def fit_deployed(
    name: str, dev: Sequence[Judgement], predictions: Sequence[Prediction], config: Config, chosen: Deployed
) -> Deployed:
    """Beta, and with --fit-temperature the temperature before it, fitted on --dev; stored where that is asked for."""
    probs, gold = [prediction.probs for prediction in predictions], [row.grade for row in dev]
    source = config.dev + (f" split {config.dev_split}" if config.dev_split else "")
    if config.fit_temperature:
        temperature = fit_temperature(probs, gold)
        chosen = replace(chosen, temperature=temperature, temperature_from=f"fitted on {source}")
        if temperature in TEMPERATURES:
            print(
                f"warning: the temperature is at the end of its range, {temperature:g}: --dev has too few rows "
                f"({len(dev)}), or the judge is always or never right there; fit on more rows",
                file=sys.stderr,
            )
    temperature = chosen.temperature
    beta = fit_beta(apply_temperature(probs, temperature), gold)
    if config.fit_temperature:
        nll = {"nll_before": mean_nll(probs, gold), "nll_after": mean_nll(probs, gold, temperature)}
        file = store_temperature(name, temperature, dev=source, rows=len(dev), **nll)
        print(f"temperature {temperature:.4g} -> {file}")
    if config.save_beta or config.fit_temperature:  # a stored beta of other probabilities would be wrong
        print(f"beta {beta:.4g} -> {store_beta(name, beta, temperature, fitted_on=source, rows=len(dev))}")
    return replace(chosen, beta=beta, beta_from=f"fitted on {source}")


def apply_deployed(
    rows: Sequence[Judgement], predictions: Sequence[Prediction], deployed: Deployed
) -> tuple[list[Prediction], dict]:
    """The predictions with the probabilities and tiers that are served, and how the temperature changes calibration."""
    about = {"beta_from": deployed.beta_from, "temperature": None}
    if deployed.temperature_from != "none":
        about["temperature"] = {
            "value": deployed.temperature,
            "from": deployed.temperature_from,
            "before": calibration_at(1.0, predictions, rows),
            "after": calibration_at(deployed.temperature, predictions, rows),
        }
        scaled = apply_temperature([prediction.probs for prediction in predictions], deployed.temperature).tolist()
        predictions = [replace(prediction, probs=tuple(probs)) for prediction, probs in zip(predictions, scaled)]
    return with_tiers(predictions, deployed.beta), about


def calibration_at(temperature: float, predictions: Sequence[Prediction], rows: Sequence[Judgement]) -> dict:
    """Three errors of the probabilities at a temperature: ECE, Brier score and NLL."""
    probs, gold = [prediction.probs for prediction in predictions], [row.grade for row in rows]
    scaled = apply_temperature(probs, temperature)
    nll = mean_nll(probs, gold, temperature)
    return {"ece": expected_calibration_error(scaled, gold), "brier": brier_score(scaled, gold), "nll": nll}


def with_tiers(predictions: Sequence[Prediction], beta: float) -> list[Prediction]:
    """The predictions, all of which have probabilities, with CumPT's tiers."""
    tiers = cumulative_tier([prediction.probs for prediction in predictions], beta)
    return [replace(prediction, tier=tier) for prediction, tier in zip(predictions, tiers)]


# ---- The report ------------------------------------------------------------------------------------------------------


def render_temperature(scaling: dict) -> str:
    """ECE (x 100), Brier score and NLL of the measured rows without and with the temperature."""
    lines = [f"temperature {scaling['value']:.4g} ({scaling['from']})", "                 ECE    Brier      NLL"]
    for when in ("before", "after"):
        errors = scaling[when]
        lines.append(f"{when:<11}{100 * errors['ece']:>9.2f}{errors['brier']:>9.4f}{errors['nll']:>9.4f}")
    return "\n".join(lines)


def report_on(
    rows: Sequence[Judgement], predictions: Sequence[Prediction], beta: float | None, head: dict, config: Config
) -> dict:
    """Measure, print, and write to --out where there is one."""
    notes = [ESCI_NOTE] if any("esci_label" in row.extra for row in rows) else []
    measured = evaluate_predictions(rows, predictions, bootstrap=config.bootstrap, seed=config.seed, beta=beta)
    report = {**head, "notes": notes, **measured}
    title = f"{head.get('model') or head['scores']} on {head.get('data', 'its own rows')} {config.split}".rstrip()
    print("\n".join([title, *notes, render_report(report)]))
    if head.get("temperature"):
        print(render_temperature(head["temperature"]) + "\n")
    if cost := head["cost"]:
        print(
            f"cost: {cost['prefills_per_row']:.2f} prefills and {cost['decoded_tok_per_row']:.1f} decoded tokens per "
            f"pair, {cost['rows_per_s']:.0f} pairs/s on {config.device} ({config.dtype})"
        )
    if beta is not None:
        print(f"CumPT beta {beta:.4g} ({head.get('beta_from') or '--beta'})")
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out), report)
        print(f"report -> {config.out}")
    return report


def evaluate_scores(config: Config) -> dict:
    """The report on --scores. Their tiers are measured, or those of --beta."""
    pairs = read_scores(config.scores, config, split=config.split, flag="--scores")[: config.limit or None]
    rows, predictions = (list(column) for column in zip(*pairs))
    if config.beta is not None:
        predictions = with_tiers(predictions, config.beta)
    head = {"scores": config.scores, "split": config.split, "cost": None}
    return report_on(rows, predictions, config.beta, head, config)


def evaluate_judge(config: Config, ranks: Ranks) -> dict:
    """The report on a model, or {} on a rank that leaves the output to another."""
    rows = load_rows(config.data, config, need_gold=True, seed=config.seed, split=config.split, limit=config.limit)
    device = local_device(config.device, ranks)
    settings = {"dtype": config.dtype, "device": device, "seed": config.seed, "plain": config.plain}
    name, judge = open_judge(config.model, max_new_tokens=config.max_new_tokens, asked=config, **settings)
    order = judge.prompt.order
    if order == "pre-cot" and (config.dev or config.beta is not None):
        reason = "reasons before it answers and has no label probabilities"
        raise ValueError(f"--model {name} {reason}: CumPT (--dev, --beta) cannot be used")
    if order == "label" and config.explain:
        raise ValueError(f"--explain: --model {name} answers with the grade alone, without a chain of thought")
    deployed = None if order == "pre-cot" else choose_deployed(name, config)
    dev = load_dev(rows, config)
    say_trained_on(name, config.data, config.split)
    say_data(rows, judge)

    def work(chunk: list[Judgement], start: int) -> list[dict]:
        explain = config.explain and start >= len(dev)  # of the rows of --dev only probabilities are needed
        return [predict_chunk(judge, chunk, explain, config)]

    both, identity = [*dev, *rows], {}
    if config.out:
        facts = {"rows of dev": len(dev), "deployed": deployed and astuple(deployed)}
        digest = model_digest(judge.model, judge.tokenizer, judge.prompt)
        facts |= {"judge": digest, "prompt_wording": judge.prompt.wording_sha256}
        identity = job_identity("evaluate", config, both, **facts)
    more = {"boundary": len(dev), "overwrite": config.overwrite}
    with run_in_chunks(config.out, identity, both, ROWS_AT_A_TIME, work, "evaluate", **more) as chunks:
        if chunks is None:
            return {}
        predictions, cost = merge_chunks(chunks, len(dev))
        if dev:
            deployed = fit_deployed(name, dev, predictions[: len(dev)], config, deployed)
        predictions, about = predictions[len(dev) :], {"beta_from": None, "temperature": None}
        if deployed:
            predictions, about = apply_deployed(rows, predictions, deployed)
        asked = {"order": order, "prompt_sha": judge.prompt.wording_sha256}
        head = {"model": name, **asked, "data": config.data, "split": config.split, **about, "cost": cost}
        return report_on(rows, predictions, deployed and deployed.beta, head, config)


def main(argv: list[str] | None = None) -> dict:
    """Returns the report, or {} on a rank that leaves the output to another."""
    config, ranks = parse_config(Config, __doc__, argv), this_rank()
    refuse_overwriting(config.out, config.overwrite)
    if not config.scores:
        return evaluate_judge(config, ranks)
    if ranks.world > 1:
        raise ValueError(f"--scores is read by one process, this is one of {ranks.world}: start it without torchrun")
    return evaluate_scores(config)


if __name__ == "__main__":
    run_main(main, Config)
