"""The trainings of examples/reproduce.py, each made once for all claims that read it. This file is all that names them.

Placeholders: {out} is the folder of the run and {NAME} that of another run with the same seed, which is made before;
{seed} {dtype}; {tiny} {tiny_thinker} {lr} are fresh weights and their learning rate, {flow} how preference pairs are
balanced (under --quick bundled weights and not at all: a few steps from fresh ones would write no reply that can be
read); {reasoned} {reasoned_300} {labelled} {explained} {unlabelled} {dev} {test} are pools of the shop. Every model is
{out}/model.

minutes: on one core; those of examples/guide/results.md, or measured at seed 0. The plan's length is their sum.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Spec:
    """One training. thinks: it reasons before it answers, and has no label probabilities. test: how a rival that is no
    language model is scored, which needs no training."""

    name: str
    minutes: float
    commands: tuple[str, ...]
    thinks: bool = False
    test: str = ""


DEV = "--dev {dev} --dev-rows 1000 --seed {seed} --out {out}/model"
GRADED = "{reasoned},{labelled}"
MUON = "--optimizer muon --muon-lr 0.005 --lr 1e-3"  # the quickstart's, for trained weights
# Stage 1: orders, and each from fresh weights.
SFT = f"train/sft.py --dtype {{dtype}} {DEV}"
THINK, LABEL, POST = f"{SFT} --order pre-cot", f"{SFT} --order label", f"{SFT} --order post-cot --label-weight 3"
FRESH = {
    "thinker": f"{THINK} --model {{tiny_thinker}} --lr {{lr}} --steps 500 --eval-every 125",
    "label": f"{LABEL} --model {{tiny}} --lr {{lr}} --steps 500 --eval-every 125",
    "post": f"{POST} --model {{tiny}} --lr {{lr}} --steps 450 --eval-every 150",
}
# Stage 2.
MINE = (
    f"train/mine_pairs.py --model {{post-sft}}/model --data {GRADED} --prompts 2400 --balance {{flow}} --seed {{seed}}"
)
DPO = f"train/dpo.py {DEV} --model {{post-sft}}/model --data {{out}}/pairs.jsonl --steps 48 --eval-every 12"
# Stage 3: class balance with minimal rejection is the paper's; prefill draws the same labels as samples, for less.
GRPO = f"train/grpo.py {DEV} --test= --groups 80"
STAGE_3 = f"{GRPO} --data {GRADED} --label-weight 4 --lr 4e-4 --final-lr-frac 0.5"
PAPERS = "--difficulty prefill --balance class --steps 60 --eval-every 20"
NATURAL, UNFILTERED = PAPERS.replace("class", "none"), PAPERS.replace("prefill", "none")
REINFORCE = "--difficulty none --balance none --adv-std none --normalise constant --kl-beta 0 --steps 24 --eval-every 8"
THINKER = f"{GRPO} --model {{thinker-sft}}/model --steps 100 --eval-every 25"
# What is read of a run: the command, the file that it makes, and minutes.
SCORE = "infer/score.py --model {run}/model --dtype {dtype} --out {out}/scores.jsonl --data"
REPLY = "infer/sample.py --model {run}/model --data {test} --out {out}/replies.jsonl"
READS = {
    "test": (f"{SCORE} {{test}}", "scores.jsonl", 0.3),
    "dev": (f"{SCORE} {{dev}}", "scores.jsonl", 0.2),
    "replies": (f"{REPLY} --temperature 0 --samples 1", "replies.jsonl", 0.7),  # greedy
    "samples": (f"{REPLY} --limit 1000 --samples 5 --seed {{seed}}", "replies.jsonl", 0.7),
}
BOOSTED = "examples/real/rivals.py --rival boosted-balanced --data {test} --seed {seed} --out {out}/scores.jsonl --fit "

PAIRS = (300, 1000, 3000, 12000)  # of reasons; the first three are the beginning of the last
SIZES = {64: 0.21, 128: 0.72, 256: 2.62, 512: 12.33}  # width: millions of weights


def _grpo(name: str, flags: str, minutes: float = 2.5, start: str = "post-dpo") -> Spec:
    return Spec(name, minutes, (f"{STAGE_3} --model {{{start}}}/model {flags}",))


def _thinker(name: str, flags: str, minutes: float) -> Spec:
    return Spec(name, minutes, (f"{THINKER} {flags}",), thinks=True)


def _dpo(name: str, source: str) -> Spec:
    return Spec(name, 1.0, (f"{MINE} --source {source} --balance {{flow}} --out {{out}}/pairs.jsonl", DPO))


def _of_pairs(pairs: int) -> tuple[Spec, ...]:
    """Thinker, label only and post-CoT from so many reasoned pairs, each from fresh weights; the thinker's student."""
    name = {kind: f"{kind}-sft" if pairs == 3000 else f"{kind}-{pairs}" for kind in FRESH}
    minutes = {"thinker": 2.3, "label": 1.0, "post": 1.8}
    student = (
        f"train/label_pool.py --model {{{name['thinker']}}}/model --data {{unlabelled}} --dtype {{dtype}} "
        "--seed {seed} --out {out}/pool.jsonl",
        f"{LABEL} --model {{{name['thinker']}}}/model --data {{out}}/pool.jsonl --steps 1000 --eval-every 250 {MUON}",
    )
    data = f"--data {{reasoned_{pairs}}}"
    fresh = (Spec(name[k], minutes[k], (f"{FRESH[k]} {data}",), thinks=k == "thinker") for k in FRESH)
    return (*fresh, Spec(f"student-{pairs}", 3.5, student))


def _of_size(width: int, layers: int, minutes: float) -> tuple[Spec, ...]:
    """Thinker and label only from 3,000 pairs, at another size than the 0.7 M weights of all others."""
    make = f"examples/claims/fresh_model.py --width {width} --layers {layers} --seed {{seed}} --out {{out}}/fresh"
    same = "--model {out}/fresh --data {reasoned} --lr {lr} --steps 500 --eval-every 125 --optimizer muon"
    return (
        Spec(f"thinker-w{width}", minutes, (make, f"{THINK} {same}"), thinks=True),
        Spec(f"label-w{width}", minutes / 2, (make, f"{LABEL} {same}")),
    )


SPECS = {
    spec.name: spec
    for spec in (
        *(spec for pairs in PAIRS for spec in _of_pairs(pairs)),
        *_of_size(64, 4, 2), *_of_size(256, 4, 7), *_of_size(512, 5, 30),
        # Rivals without a language model.
        Spec("boosted-3k", 0.3, (), test=f"{BOOSTED}{{reasoned}}"),
        Spec("boosted-12k", 0.4, (), test=f"{BOOSTED}{GRADED}"),
        # On every grade: 3,000 with reasons, 9,000 without.
        Spec("label-12k", 3.2, (
            f"{LABEL} --model {{post-sft}}/model --data {GRADED} --steps 1600 --eval-every 400 {MUON}",)),
        # Stage 2, and stage 1 that goes on instead.
        _dpo("post-dpo", "both"), _dpo("dpo-self", "self"), _dpo("dpo-oracle", "oracle"),
        Spec("post-sft-longer", 1.2, (
            f"{POST} --model {{post-sft}}/model --data {{reasoned}} --steps 300 --eval-every 100 --lr 1e-3",)),
        # Stage 3, and one change of it each.
        _grpo("grpo", PAPERS), _grpo("grpo-without-dpo", PAPERS, start="post-sft"),
        _grpo("grpo-unfiltered", UNFILTERED, 5), _grpo("grpo-gamma4", f"{PAPERS} --gamma 4"),
        _grpo("grpo-gamma2", f"{PAPERS} --gamma 2"),
        _grpo("grpo-root", PAPERS.replace("class", "root")), _grpo("grpo-natural", NATURAL),
        _grpo("grpo-natural-gamma4", f"{NATURAL} --gamma 4"),
        _grpo("grpo-natural-unfiltered", NATURAL.replace("prefill", "none"), 5),
        _grpo("grpo-sft-term", f"{PAPERS} --sft-coef 0.1 --sft-data {{reasoned}}", 3),
        _grpo("grpo-no-std", f"{PAPERS} --adv-std none"),
        # Other trainings on the same labels, for about as many seconds as GRPO.
        _grpo("reinforce", REINFORCE),
        Spec("raft", 2.5, (
            "train/label_pool.py --model {post-dpo}/model --data {labelled} --limit 4800 --only-right --samples 4 "
            "--dtype {dtype} --seed {seed} --out {out}/right.jsonl",
            f"{POST} --model {{post-dpo}}/model --data {{out}}/right.jsonl --steps 300 --eval-every 100 --lr 4e-4")),
        Spec("cross-entropy", 2.5, (
            f"{LABEL} --model {{post-dpo}}/model --data {GRADED} --steps 1000 --eval-every 250 {MUON}",)),
        # The thinker, on grades that it has not seen.
        _thinker("thinker-grpo", "--data {labelled}", 2.7),
        _thinker("thinker-sft-term", "--data {labelled} --sft-coef 0.1 --sft-data {reasoned}", 3.0),
        _thinker("thinker-steps", "--data {explained} --rewards label=1,steps=0.5", 2.9),
        Spec("thinker-grpo-long", 5.5, (
            f"{THINKER} --data {{labelled}}".replace("--steps 100 --eval-every 25", "--steps 200 --eval-every 20"),),
            thinks=True),
    )
}  # fmt: skip
