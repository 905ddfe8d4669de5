"""The claims that examples/reproduce.py tests, in the order in which its table fills. Written before the runs.

A side is a run of examples/claims/runs.py, measured by macro-F1 on the test pool, or "MEASURE of RUN" with a measure of
examples/claims/measures.py. `better` is what the paper says is better, `worse` what it is compared with; `rival` is
the strongest simple way to the same end, where `worse` is not that already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from examples.claims.runs import PAIRS, SIZES


@dataclass(frozen=True)
class Claim:
    """One line of the table. paper: its numbers (F1 x 100), "none" where it gives none.

    policies: for the one claim about a correlation, the runs over which it is taken; it has no sides. also: further
    sides that the sections below the table show.
    """

    name: str
    text: str
    paper: str
    better: str = ""
    worse: str = ""
    rival: str = ""
    note: str = ""
    policies: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


# Why stages are compared as they are: the paper publishes one model after all stages, and the number after each.
ALL_STAGES = "the paper's number is after all stages, ours after SFT"
SAME = "the same labels, about the same seconds"
STAGES = ("post-sft", "post-dpo", "grpo", "thinker-sft", "thinker-grpo")
POLICIES = (
    "grpo", "grpo-gamma4", "grpo-gamma2", "grpo-unfiltered", "grpo-root", "grpo-natural", "grpo-natural-gamma4",
    "grpo-natural-unfiltered",
)  # fmt: skip

CLAIMS = (
    Claim("think-first", "Thinking first (pre-CoT SFT) is worse than the label alone",
          "51.54 against 62.22", "label-sft", "thinker-sft", "boosted-3k"),
    Claim("post-over-pre", "Answering first, then the reasons (post-CoT SFT), is better than thinking first",
          "67.12 against 51.54", "post-sft", "thinker-sft", "boosted-3k", ALL_STAGES),
    Claim("reasons", "Answering first, then the reasons, is better than the label alone",
          "67.12 against 62.22", "post-sft", "label-sft", "boosted-3k", ALL_STAGES),
    Claim("pass-n", "After SFT one of five replies is right more often than one of five guesses",
          "pass@1..5: 67.38 74.26 77.68 80.18 81.73", "pass_5 of post-sft", "guess_5 of post-sft",
          note="guesses from the grade shares; pass@1..5 after each stage is below",
          also=tuple(f"pass_5 of {run}" for run in STAGES)),
    Claim("dpo", "+ DPO on pass@N pairs", "63.58 against 51.54", "post-dpo", "post-sft", "post-sft-longer",
          "the rival is SFT that goes on for as many seconds"),
    Claim("dpo-self", "DPO on self-correction pairs alone helps", "none", "dpo-self", "post-sft", "post-sft-longer"),
    Claim("dpo-oracle", "DPO on oracle pairs alone helps", "none", "dpo-oracle", "post-sft", "post-sft-longer",
          "only the 3,000 reasoned pairs have a teacher's reply"),
    Claim("dpo-both", "Both kinds of pairs are better than self-correction alone", "none", "post-dpo", "dpo-self",
          "dpo-oracle"),
    Claim("grpo", "+ GRPO with difficulty-based sampling", "67.12 against 63.58", "grpo", "post-dpo", "cross-entropy",
          f"the rival: {SAME}"),
    Claim("all-stages", "All stages are better than label-only SFT on the same 12,000 labels", "67.12 against 62.22",
          "grpo", "label-12k", "boosted-12k"),
    Claim("grpo-after-dpo", "GRPO is better after DPO than straight after SFT", "none", "grpo", "grpo-without-dpo",
          "cross-entropy"),
    Claim("difficulty", "Dropping all-right and all-wrong groups is better than keeping every group", "none", "grpo",
          "grpo-unfiltered", "cross-entropy"),
    Claim("gamma", "Minimal rejection (gamma = 8 of 8) is better than dropping easy groups too (gamma = 4)", "none",
          "grpo", "grpo-gamma4", "grpo-gamma2"),
    Claim("balance", "Class balance with minimal rejection is better than natural shares", "none", "grpo",
          "grpo-natural", "grpo-root", "the rival keeps every group and weighs grades by the root of their frequency"),
    Claim("cv", "The more unequal the surviving grades (CV), the lower macro-F1", "a negative correlation",
          policies=POLICIES),
    Claim("hallucination-decision", "GRPO lowers discriminative hallucination: right Decision line, wrong label",
          "30 % lower than after DPO", "wrong_label_decision of grpo", "wrong_label_decision of post-dpo",
          "wrong_label_decision of raft"),
    Claim("hallucination-steps", "The same, where the steps imply the right grade under the rules",
          "30 % lower than after DPO", "wrong_label_steps of grpo", "wrong_label_steps of post-dpo",
          "wrong_label_steps of raft"),
    Claim("cumpt-argmax", "CumPT gives better tiers than the most probable grade", "67.17 against 67.12",
          "tiers_cumpt of grpo", "tiers_argmax of grpo", "tiers_costs of grpo"),
    Claim("cumpt-thresholds", "CumPT's one number does as well as four thresholds, and better", "none",
          "tiers_cumpt of grpo", "tiers_thresholds of grpo", "tiers_costs of grpo", "all are fitted on dev"),
    Claim("cumpt-costs", "CumPT is better than tiers of least expected cost", "none", "tiers_cumpt of grpo",
          "tiers_costs of grpo", note="a wrong tier costs 1 / share of the right one on dev"),
    Claim("calibration-dpo", "DPO keeps label probabilities calibrated, which CumPT adds up", "none", "ece of post-dpo",
          "ece of post-sft", "ece_scaled of post-dpo", "ECE; the rival is temperature scaling, one number from dev",
          also=("ece_scaled of post-sft",)),
    Claim("calibration-grpo", "GRPO keeps them calibrated", "none", "ece of grpo", "ece of post-dpo",
          "ece_scaled of grpo", "ECE; the rival is temperature scaling, one number from dev"),
    Claim("grpo-reinforce", "GRPO is better than plain REINFORCE", "none", "grpo", "reinforce", "cross-entropy", SAME),
    Claim("grpo-raft", "GRPO is better than SFT on the model's own right replies (RAFT)", "none", "grpo", "raft",
          "cross-entropy", SAME),
    Claim("grpo-cross-entropy", "GRPO is better than cross-entropy on the label", "none", "grpo", "cross-entropy",
          note=SAME),
    # Works that build on the paper, and ours.
    Claim("no-std", "Advantages without the std keep probabilities calibrated (2508.11800)", "none",
          "ece of grpo-no-std", "ece of grpo", "ece_scaled of grpo", "ECE"),
    Claim("sft-term", "An SFT term beside the rewards helps (AFRL, 2602.10006)", "none", "grpo-sft-term", "grpo",
          "cross-entropy"),
    Claim("thinker-grpo", "GRPO lifts a thinker on grades that it has not seen (ours)", "none", "thinker-grpo",
          "thinker-sft", "label-12k"),
    Claim("thinker-sft-term", "An SFT term beside the rewards helps a thinker (AFRL)", "none", "thinker-sft-term",
          "thinker-grpo"),
    Claim("thinker-steps", "Rewarding the steps too helps a thinker (TaoSR-AGRL, 2510.08048)", "none", "thinker-steps",
          "thinker-grpo", note="it reads the true reasons of 9,000 pairs"),
    Claim("reasons-12k", "With 12,000 reasoned pairs, answering first, then the reasons, beats the label alone",
          "67.12 against 62.22", "post-12000", "label-12000", "student-3000",
          "the rival is taught by a thinker of 3,000 reasoned pairs"),
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A picture and its table. lines: {what: ((x, side), ...)}; every side is measured on the test pool.

    logged: {what: run} instead, whose dev macro-F1 is read from metrics.jsonl at every evaluation.
    """

    name: str
    title: str
    x: str
    lines: dict[str, tuple[tuple[float, str], ...]]
    logged: tuple[str, ...] = ()


def _of_pairs(kind: str) -> tuple[tuple[float, str], ...]:
    sft = "student-3000" if kind == "student" else f"{kind}-sft"
    return tuple((pairs, sft if pairs == 3000 else f"{kind}-{pairs}") for pairs in PAIRS)


def _of_size(kind: str) -> tuple[tuple[float, str], ...]:
    return tuple((size, f"{kind}-sft" if width == 128 else f"{kind}-w{width}") for width, size in SIZES.items())


LINES = {"thinker": "thinker, pre-CoT", "post": "post-CoT", "label": "label only", "student": "the thinker's student"}
CURVES = (
    Curve("pairs", "How many reasoned pairs are needed", "reasoned pairs", {LINES[k]: _of_pairs(k) for k in LINES}),
    Curve("size", "How model size counts, 3,000 reasoned pairs", "million weights",
          {LINES[kind]: _of_size(kind) for kind in ("thinker", "label")}),
    Curve("grpo-steps", "How steps of GRPO count, the thinker on 9,000 unseen grades (dev)", "steps", {},
          logged=("thinker-grpo-long",)),
)  # fmt: skip

# What --quick starts: runs and readings of every kind, not every setting of them.
QUICK = (
    "think-first", "pass-n", "dpo", "grpo", "hallucination-decision", "cumpt-thresholds", "calibration-dpo",
    "grpo-reinforce",
)  # fmt: skip
QUICK_ITEMS = (
    *(claim for claim in CLAIMS if claim.name in QUICK),
    *(
        replace(curve, lines=dict([(what, points[:1]) for what, points in curve.lines.items()][-1:]))
        for curve in CURVES
    ),
)
