"""The rows of examples/real_judgements.py, the cheapest first. A row is its commands; this file is all that names them.

Placeholders in a command:
    {fit} {dev}      files of the data set that the row is trained on: 4/5 and 1/5 of its train queries
    {esci_fit} {esci_dev} {esci_test} {chorus_fit} {chorus_dev} {chorus_test}   those of a data set by name
    {out}            the folder of this run: one row, one data set, one seed
    {NAME}           the folder of another row's run with the same data set and seed, which is then run before
    {seed} {model} {dtype} {minilm}   as the study's flags say (`dtype`: bfloat16 where the CPU is fast at it)
    {data} {scores}  in `score` only: the file to score, and the file to write (of several, with commas: `together`)
What a command makes is its --out, or for a stage of train/ with --steps that folder's last checkpoint; a command whose
result exists is not repeated. A row that needs a data set which is not given is left out by name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table.

    what: how the table calls it. commands: run in this order. score: the command that scores one file; it is run on the
    dev rows that settings, decision weights and temperature come from, and once on each test set. cost: a command whose
    report has the speed, where scoring itself does not say it. ours: one of our judges, otherwise a rival.
    trained: on one data set at a time; otherwise (zero-shot) one run is tested on both.
    seeded: differs by seed; otherwise one seed is enough. together: one command scores all files.
    """

    name: str
    what: str
    commands: tuple[str, ...]
    score: str
    cost: str = ""
    ours: bool = False
    trained: bool = True
    seeded: bool = True
    together: bool = False


def _rival(name: str, what: str) -> Row:
    flags = "--fit {fit} --data {data} --out {scores} --seed {seed}"
    flags += " --minilm={minilm}" if "cosine" in name else ""
    return Row(name, what, (), f"examples/real/rivals.py --rival {name} {flags}", seeded=False, together=True)


def _judge(name: str, what: str, *commands: str, stage: str = "sft", trained: bool = True) -> Row:
    """A language model of ours; `stage` is the folder in {out} of the run that is scored, "" the model itself."""
    model = f"--model {{out}}/{stage}" if stage else "--model {model}"
    score = f"infer/score.py {model} --data {{data}} --out {{scores}} --dtype {{dtype}}"
    report = "--data {dev} --limit 128 --bootstrap 0 --dtype {dtype} --out {out}/cost.json"
    cost = f"infer/evaluate.py {model} {report}"
    return Row(name, what, commands, score, cost, ours=True, trained=trained, seeded=trained)


MINILM = "examples/real/minilm.py --minilm={minilm}"
SFT = "train/sft.py --data {fit} --dev {dev} --seed {seed} --dtype {dtype} --out {out}/sft"

ROWS = (
    _rival("majority", "grade shares of train"),
    _rival("word-share", "share of query words in the title"),
    _rival("boosted", "gradient boosting"),
    _rival("boosted-balanced", "gradient boosting, balanced classes"),
    _rival("cosine", "MiniLM, cosine of embeddings"),
    _rival("boosted-cosine", "gradient boosting with that cosine"),
    _rival("boosted-cosine-balanced", "the same, balanced classes"),
    Row(
        "cross-encoder",
        "MiniLM cross-encoder, fine-tuned",
        (MINILM + " --fit {fit} --dev {dev} --seed {seed} --out {out}/best.safetensors",),
        MINILM + " --weights {out}/best.safetensors --data {data} --out {scores}",
        together=True,
    ),
    _judge("zero-shot", "language model, zero-shot", stage="", trained=False),
    _judge("label-sft", "label SFT", SFT + " --model {model} --order label --lr 1e-4 --steps 100 --batch-size 32"),
)  # fmt: skip
