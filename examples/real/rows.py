"""The rows of examples/real_judgements.py, the cheapest first. A row is its commands; this file is all that names them.

Placeholders in a command:
    {fit} {dev}      files of the data set that the row is trained on: 4/5 and 1/5 of its train queries
    {esci_fit} {esci_dev} {esci_test} {chorus_fit} {chorus_dev} {chorus_test}   those of a data set by name
    {out}            the folder of this run: one row, one data set, one seed
    {NAME}           the folder of another row's run with the same data set and seed, which is then run before
    {seed} {model} {dtype} {minilm} {catalogue}   as the study's flags say (`dtype`: bfloat16 where that is fast)
    {data} {scores}  in `score` only: the file to score, and the file to write (of several, with commas: `together`)
What a command makes is its --out, or for a stage of train/ with --steps that folder's last checkpoint; a command whose
result exists is not repeated. A row that needs a data set or a catalogue which is not given is left out by name.
"""

from __future__ import annotations

from dataclasses import dataclass

BOTH = ("esci", "chorus")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    what: how the table calls it. commands: run in this order. score: the command that scores one file; it is run on the
    dev rows that settings, decision weights and temperature come from, and once on each test set. cost: a command whose
    report has the speed, where scoring itself does not say it. ours: one of our judges, otherwise a rival.
    trained: on one data set at a time, those of `on`; otherwise (zero-shot) one run is tested on both.
    seeded: differs by seed; otherwise one seed is enough. together: one command scores all files.
    """

    name: str
    what: str
    commands: tuple[str, ...]
    score: str
    cost: str = ""
    ours: bool = False
    trained: bool = True
    on: tuple[str, ...] = BOTH
    seeded: bool = True
    together: bool = False


def _rival(name: str, what: str) -> Row:
    flags = "--fit {fit} --data {data} --out {scores} --seed {seed}"
    flags += " --minilm={minilm}" if "cosine" in name else ""
    return Row(name, what, (), f"examples/real/rivals.py --rival {name} {flags}", seeded=False, together=True)


def _judge(
    name: str, what: str, *commands: str, stage: str = "sft", trained: bool = True, on: tuple[str, ...] = BOTH,
    seeded: bool = False,
) -> Row:  # fmt: skip
    """A language model of ours; `stage` is the folder in {out} of the run that is scored, "" the model itself."""
    model = f"--model {{out}}/{stage}" if stage else f"--model {{model}} {TITLE}"
    score = f"infer/score.py {model} --data {{data}} --out {{scores}} --dtype {{dtype}}"
    report = "--data {dev} --limit 128 --bootstrap 0 --dtype {dtype} --out {out}/cost.json"
    cost = f"infer/evaluate.py {model} {report}"
    return Row(name, what, commands, score, cost, ours=True, trained=trained, on=on, seeded=seeded)


MINILM = "examples/real/minilm.py --minilm={minilm}"
# Every language model here has its settings from dev, and a laptop's budget: 40 updates with 32 rows each.
TITLE, EVIDENCE = "--fields title,brand --max-chars 80", "--fields title,evidence --max-chars 80"
LORA, ALL = "--lora-rank 16 --lr 5e-4", "--lr 5e-5"
GENTLE, ALL_GENTLE = "--lora-rank 16 --lr 2e-4", "--lr 2e-5"  # from a judge that is one already
ON_DEV = "--dev {dev} --eval-every 0 --seed {seed} --dtype {dtype}"
SFT = f"train/sft.py --order label --steps 40 --batch-size 32 {ON_DEV} --out {{out}}/sft"
LONG = SFT.replace("--steps 40", "--steps 80")
JUDGED = "--data {fit}"
COLD = "--data catalogue:{catalogue}:labelled"
GRPO = f"train/grpo.py --data {{fit}} --steps 16 --groups 32 --max-new-tokens 2 --lr 2e-4 --lora-rank 16 {ON_DEV}"
PLAIN = "--difficulty none --balance none --adv-std none --normalise constant --kl-beta 0"
TEACHER = "train/teacher.py evidence --data {fit} --out {out}/reasoned.jsonl"
COT = f"train/sft.py --data {{out}}/reasoned.jsonl --steps 40 --batch-size 32 {ON_DEV} {GENTLE}"
BEST = "--model {cold-start}/sft"  # on dev better than what SFT on the judgements makes of it

ROWS = (
    _rival("majority", "grade shares of train"),
    _rival("word-share", "share of query words in the title"),
    _rival("boosted", "gradient boosting"),
    _rival("boosted-balanced", "gradient boosting, balanced classes"),
    _rival("cosine", "MiniLM, cosine of embeddings"),
    _rival("boosted-cosine", "gradient boosting on overlap and MiniLM's cosine"),
    _rival("boosted-cosine-balanced", "gradient boosting on overlap and MiniLM's cosine, balanced"),
    _rival("shallow-cosine", "60 shallow trees on word overlap and MiniLM's cosine"),
    Row(
        "cross-encoder",
        "MiniLM cross-encoder, fine-tuned",
        (MINILM + " --fit {fit} --dev {dev} --settings 2 --epochs 2 --seed {seed} --out {out}/best.safetensors",),
        MINILM + " --weights {out}/best.safetensors --data {data} --out {scores}",
        together=True,
    ),
    _judge("zero-shot", "language model, zero-shot", stage="", trained=False),
    _judge(
        "cold-start", "cold start from a catalogue alone",
        f"{LONG} --model {{model}} {COLD} {EVIDENCE} {LORA}", trained=False,
    ),
    _judge(
        "cold-long", "the cold start, twice as long, from the same catalogue",
        f"{LONG} --model {{cold-start}}/sft {COLD} {GENTLE} --seed 1", trained=False,  # other queries and pairs
    ),
    _judge("label-sft", "label SFT, title and brand", f"{SFT} --model {{model}} {JUDGED} {TITLE} {LORA}"),
    _judge("evidence-sft", "label SFT, title and evidence", f"{SFT} --model {{model}} {JUDGED} {EVIDENCE} {LORA}"),
    _judge(
        "cold-sft", "cold start, then label SFT", f"{SFT} --model {{cold-start}}/sft {JUDGED} {GENTLE}", seeded=True,
    ),
    _judge(
        "mixed-sft", "cold start, then label SFT on judgements and catalogue",
        f"{SFT} --model {{cold-start}}/sft --data catalogue:{{catalogue}}:labelled*2700,{{fit}} {GENTLE}",
    ),
    _judge(
        "cold-soft", "cold start, then label SFT, soft ordinal labels",
        f"{SFT} --model {{cold-start}}/sft {JUDGED} {GENTLE} --soft-labels 0.5",
    ),
    _judge(
        "cold-grpo", "cold start, then GRPO: difficulty-based sampling, class balance",
        f"{GRPO} {BEST} --difficulty prefill --balance class --out {{out}}/grpo", stage="grpo",
    ),
    _judge(
        "cold-reinforce", "cold start, then plain REINFORCE", f"{GRPO} {BEST} {PLAIN} --out {{out}}/grpo", stage="grpo",
        on=("esci",),
    ),
    _judge(
        "cold-dpo", "cold start, then DPO",
        f"train/mine_pairs.py {BEST} --data {{fit}} --prompts 1000 --samples 5 --max-new-tokens 2 --seed {{seed}} "
        "--dtype {dtype} --out {out}/pairs.jsonl",
        f"train/dpo.py {BEST} --data {{out}}/pairs.jsonl --steps 16 --lora-rank 16 {ON_DEV} --out {{out}}/dpo",
        stage="dpo", on=("esci",),
    ),
    _judge(
        "all-weights", "label SFT, title and evidence, all weights",
        f"{SFT} --model {{model}} {JUDGED} {EVIDENCE} {ALL}",
    ),
    _judge(
        "cold-all", "cold start from a catalogue alone, all weights",
        f"{LONG} --model {{model}} {COLD} {EVIDENCE} {ALL}", trained=False,
    ),
    _judge(
        "cold-all-sft", "cold start, then label SFT, all weights",
        f"{SFT} --model {{cold-all}}/sft {JUDGED} {ALL_GENTLE}",
    ),
    _judge(
        "post-cot", "cold start, then post-CoT SFT (evidence teacher)", TEACHER,
        f"{COT} --model {{cold-start}}/sft --order post-cot --out {{out}}/sft", on=("esci",),
    ),
    _judge(
        "titles-start", "titles against other titles alone",
        f"{LONG} --model {{model}} --data catalogue:{{catalogue}}:titles {EVIDENCE} {LORA}",
        trained=False,
    ),
    _judge(
        "titles-sft", "titles against other titles, then label SFT",
        f"{SFT} --model {{titles-start}}/sft {JUDGED} {GENTLE}", on=("esci",),
    ),
    _judge(
        "pretrained-sft", "continued pre-training on product text, then label SFT",
        "train/pretrain.py --model {model} --data {catalogue} --steps 40 --batch-size 32 --max-tok 64 --eval-every 0 "
        "--seed {seed} --dtype {dtype} --out {out}/text",
        f"{SFT} --model {{out}}/text {JUDGED} {EVIDENCE} {LORA}", on=("esci",),
    ),
    _judge(
        "varied-sft", "label SFT, queries with a demand less or a brand more",
        f"{SFT} --model {{model}} --data varied:{{fit}} {EVIDENCE} {LORA}", on=("esci",),
    ),
    _judge(
        "student", "a thinker (pre-CoT) teaches the one-prefill student", TEACHER,
        f"{COT} --model {{cold-start}}/sft --order pre-cot --out {{out}}/thinker",
        "train/label_pool.py --model {out}/thinker --data catalogue:{catalogue}:unlabelled*1500 --max-new-tokens 96 "
        "--dtype {dtype} --out {out}/pool.jsonl",
        f"{SFT} --model {{cold-start}}/sft --data {{out}}/pool.jsonl,{{fit}} {GENTLE}",
        "infer/evaluate.py --model {out}/thinker --data {esci_test} --max-new-tokens 96 --dtype {dtype} "
        "--out {out}/thinker-on-test.json", on=("esci",),
    ),
)  # fmt: skip
