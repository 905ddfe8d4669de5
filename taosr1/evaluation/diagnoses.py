"""Why a reward does not rise: the rules by which a run's metrics are read, from its record to what is wrong with it.

A rule is a function of a `Record` that returns a `Finding` or None. The thresholds are below, each with its reason;
"the default run" is that of `taosr1/evaluation/default_runs`, whose numbers they were set against. A metric that was
not logged is NaN, and no comparison with NaN holds: a rule is then silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from taosr1.evaluation.record import Finding, Record
from taosr1.task.grades import GRADES, grade_name

MANY = 0.1  # share of cut or unreadable replies: the default runs have below 0.01
TIED = 0.95  # share of groups that teach nothing: the default run has 0.86, and is left with 11 of 80 groups
SHORT = 0.75  # share of steps with fewer than --min-groups groups: the default run has 0.2
COLD, HOT = 0.5, 1.2  # temperatures: below, replies to a prompt are all alike; above, small models write no words
ENTROPY_GONE = 0.1  # of the entropy that the run began with: the default run keeps all of it
ENTROPY_ROSE = 5.0  # times the entropy at the start, and more than
ENTROPY_NOISE = 0.3  # nats: a judge that is sure of its form has 0.03, a large one 0.1 to 0.3
KL_AWAY = 0.5  # nats a token: the default run ends at 0.03, and single steps of it reach 0.1
KL_STILL = 1e-5  # nats a token, after the first quarter of the steps: the default run has 0.02 by then
DEV_STILL = 1e-5  # of any dev score: rounding
CLIPPED = 0.1  # share of tokens that the clip stopped: 0 in the default run, a few percent where PPO learns well
SURE = 3.0  # standard errors: one run in 700 by chance
VANISHED = 0.25  # of the share of replies that gave a grade at first
COMMON = 0.04  # a grade below this share of the replies may be missing from them by chance
FALL = 0.05  # of dev macro-F1 over 1,000 rows, twice its 95 % half width; grows as the root of fewer rows
ONE_GRADE = 0.95  # share of dev rows that get the same grade
LOW_MASS = 0.9  # label mass: the default DPO run ends at 0.96
STILL = 0.05  # relative change of a loss that counts as none: batches of 64 scatter by 0.02
NOTHING = 0.05  # nats: the loss of a judge that knows its rows is 0.00 to 0.02
LEARNED = 0.9  # mean probability of a token from which on a loss has little left to fall
MARGIN = 0.05  # DPO's margin; the default run has 1.1. A pair's loss is then ln 2 = 0.69 to within 0.03
PUSHED_DOWN = 3.0  # nats: the chosen reply is 20 times less likely than at the start. 0.2 in the default run
MIN_STEPS = 8  # below these a trend is not judged
DEV_ENOUGH = 200  # rows: the rarest grade, a twentieth of the shop's pairs, has ten of them
DPO_MOVED = 1.0  # nats, of a batch's mean reply: 14 in the default run

Rule = Callable[[Record], "Finding | None"]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# ---- Every stage -----------------------------------------------------------------------------------------------------


def not_finite(run: Record) -> Finding | None:
    if run.skipped:
        what = f"{len(run.skipped)} of {run.steps} steps were skipped, as loss or gradient was infinite or NaN"
        return run.finding("not finite", what, "lower {lr}", run.skipped[0])
    return None


def dev_fall(run: Record) -> float:
    """How far the best dev score lies above the last one, in macro-F1; NaN without two of them."""
    values = run.values("dev_macro_f1")
    return max(values) - values[-1] if len(values) > 1 else math.nan


def dev_falls(run: Record) -> Finding | None:
    """Overfitting where training still improves; else the same learning rate destroys both."""
    if not dev_fall(run) > FALL * max(1.0, math.sqrt(1000 / run.dev_rows)):
        return None
    curve = run.curves["dev_macro_f1"]
    best = max(curve, key=curve.get)
    what = f"macro-F1 on dev was {100 * curve[best]:.1f} at step {best} and is {100 * run.last('dev_macro_f1'):.1f}"
    if run.stage == "grpo":
        improves = run.late("reward_balanced") >= _mean_until(run, "reward_balanced", best)
    else:
        improves = run.late("loss") < _mean_until(run, "loss", best)
    if improves:
        change = "stop at fewer {steps}, give --data more rows, or lower {lr}; --model RUN loads the best checkpoint"
        return run.finding("dev falls while training improves", what, change, best)
    return run.finding("dev falls", what, "lower {lr}; --model RUN loads the best checkpoint", best)


def _mean_until(run: Record, name: str, step: int) -> float:
    values = [value for at, value in run.curves.get(name, {}).items() if at <= step][-MIN_STEPS:]
    return sum(values) / len(values) if values else math.nan


def dev_loss_rises(run: Record) -> Finding | None:
    values = run.curves.get("dev_loss", {})
    if len(values) < 2 or not run.last("dev_loss") > (1 + STILL) * min(values.values()):
        return None
    best = min(values, key=values.get)
    what = f"the loss of held-out texts was {values[best]:.2f} at step {best} and is {run.last('dev_loss'):.2f}"
    return run.finding("dev loss rises", what, "lower {lr}, or stop at fewer {steps}", best)


def _balance_of(run: Record) -> str:
    """The setting by which a stage gives rare grades more weight."""
    return {
        "sft": "lower {grade_power}, train for more {steps}, or give --data more rows of that grade",
        "grpo": "lower {lr}, raise {kl_beta}, or change {balance} to class",
    }.get(run.stage, "mine pairs with train/mine_pairs.py --balance flow, or lower {lr}")


def grade_missing(run: Record) -> Finding | None:
    """One grade for all dev rows, or one that none of them is given although dev has it.

    The second is no chance where dev is large, or where the grade was found before. A fresh model finds the rare grades
    last: the first half of a run is not judged.
    """
    if 2 * run.steps < run.setting("steps"):
        return None
    shares = {grade: run.last(f"dev_share/{grade}") for grade in GRADES}
    recall = {grade: run.values(f"dev_recall/{grade}") for grade in GRADES}
    present = [grade for grade in GRADES if recall[grade]]
    for grade in GRADES:
        if shares[grade] >= ONE_GRADE and len(present) > 1:
            what = f"{_percent(shares[grade])} of the dev rows are given {grade_name(grade)}"
            return run.finding("one grade for all", what, _balance_of(run), _last_dev(run))
    readable = run.last("dev_unparsed_frac") < 0.5
    missing = [grade for grade in present if shares[grade] == 0 and readable]
    for grade in missing:
        if run.dev_rows >= DEV_ENOUGH or max(recall[grade]) > 0:
            what = f"no dev row is given {grade_name(grade)}; at best {_percent(max(recall[grade]))} of them were found"
            return run.finding("a grade is never given", what, _balance_of(run), _last_dev(run))
    return None


def _last_dev(run: Record) -> int:
    return max(run.curves.get("dev_macro_f1", {}), default=run.steps)


def dev_unreadable(run: Record) -> Finding | None:
    share = run.last("dev_unparsed_frac")
    if not share > MANY or run.stage == "grpo" and no_grade(run):
        return None
    what = f"{_percent(share)} of the replies to dev rows give no grade, and count as wrong"
    change = "raise {max_new_tokens} where replies are cut, for reasons that come before the grade; else "
    change += "train for more {steps}" if run.stage == "sft" else "train/sft.py comes first, or lower {lr}"
    return run.finding("unreadable on dev", what, change, _last_dev(run))


def low_label_mass(run: Record) -> Finding | None:
    mass = run.last("dev_label_mass")
    if not mass < LOW_MASS or 2 * run.steps < run.setting("steps"):
        return None
    what = f"label mass on dev is {mass:.2f}: the rest of the probability is on tokens that are no label"
    change = "raise {label_weight} or {steps}" if run.stage == "sft" else "lower {lr}, or begin with train/sft.py"
    return run.finding("low label mass", what, change, _last_dev(run))


# ---- SFT, and pre-training -------------------------------------------------------------------------------------------


def loss_rises(run: Record) -> Finding | None:
    before = min(run.first("loss"), run.early("loss"))
    if run.steps < MIN_STEPS or not run.late("loss") > max((1 + STILL) * before, before + NOTHING):
        return None
    what = f"the loss was {run.first('loss'):.2f} at the first step and is {run.late('loss'):.2f}"
    return run.finding("learning rate too high", what, f"lower {_rates(run)}")


def loss_stays(run: Record) -> Finding | None:
    first, late = run.first("loss"), run.late("loss")
    if run.steps < MIN_STEPS or run.first("mean_token_prob") > LEARNED or not abs(late - first) <= STILL * first:
        return None
    what = f"the loss was {first:.2f} at the first step and is {late:.2f}: it has not moved"
    return run.finding("learning rate too low", what, f"raise {_rates(run)}")


def _rates(run: Record) -> str:
    uses_muon = run.config.get("optimizer") == "muon" or run.config.get("model") == "tiny" and run.stage == "sft"
    return "{muon_lr} and {lr}" if uses_muon and run.config.get("optimizer") != "adamw" else "{lr}"


# ---- DPO -------------------------------------------------------------------------------------------------------------


def margin_stays(run: Record) -> Finding | None:
    """The margin is 0 where the weights stay, and where pairs pull both ways: what moved tells the two apart."""
    margin = run.late("rewards/margins")
    if run.steps < MIN_STEPS or not abs(margin) < MARGIN:
        return None
    moved = max(map(abs, run.values("rewards/chosen") + run.values("rewards/rejected"))) / run.setting("beta")
    what = f"the margin of chosen over rejected replies is {margin:.3f}"
    if moved < DPO_MOVED:
        what += f", and no log-prob has moved by more than {moved:.2g} nats"
        return run.finding("learning rate too low", what, "raise {lr}, or train for more {steps}")
    what += f", though log-probs have moved by {moved:.1f} nats: the pairs contradict each other"
    return run.finding("pairs contradict each other", what, "look for the same two replies in both orders in {data}")


def chosen_falls(run: Record) -> Finding | None:
    fall = -run.late("rewards/chosen") / (run.setting("beta") or math.nan)
    if not fall > PUSHED_DOWN:
        return None
    what = f"chosen replies are {fall:.1f} nats less likely than at the start: both replies of a pair are pushed down"
    return run.finding("chosen replies get less likely", what, "raise {nll_coef} or {beta}, or lower {lr}")


# ---- GRPO: the groups ------------------------------------------------------------------------------------------------


def no_grade(run: Record) -> Finding | None:
    """Replies that are cut or say no grade: why depends on whether the model could do it at first, and on the flags."""
    first, late = run.first("unreadable_frac"), run.late("unreadable_frac")
    cut = run.late("completions/clipped_ratio")
    what = f"{_percent(late)} of the replies give no grade ({_percent(first)} at the first step)"
    if late > MANY and run.setting("temperature") > HOT:
        return run.finding("sampled too hot", what, "lower {temperature}: 1 samples what the model would say")
    if late > MANY and first < late / 2:
        return run.finding("the form is lost", what, "lower {lr}, or raise {kl_beta}")
    if cut > MANY:
        what = f"{_percent(cut)} of the replies were cut before they ended, and {what}"
        untrained = "; where the model has not learned when to end, train/sft.py comes first" if late > MANY else ""
        return run.finding("replies cut", what, "raise {max_new_tokens}" + untrained)
    if late > MANY:
        return run.finding("the form was never learned", what, "train/sft.py comes first: it teaches the form")
    return None


def tied(run: Record) -> Finding | None:
    """Groups whose replies are all right or all wrong have no advantage, and those that gamma drops are not used."""
    causes = {name: run.late(f"{name}_frac") for name in ("all_right", "all_wrong", "too_easy")}
    share = sum(causes.values())
    if not share > TIED:
        return None
    right, wrong, easy = map(_percent, causes.values())
    what = f"{_percent(share)} of the groups teach nothing: {right} all right, {wrong} all wrong, {easy} above gamma"
    cause = max(causes, key=causes.get)
    if run.setting("temperature") < COLD:
        return run.finding("replies all alike", what, "raise {temperature}: the replies to a prompt hardly differ")
    if share - causes["too_easy"] <= TIED:
        return run.finding("gamma too low", what, "raise {gamma}, which drops what the model is mostly right on")
    if cause == "all_wrong":  # where no grade can be read, `no_grade` says why
        change = "look at the grades of --data (python -m taosr1.data.inspect FILE shows how they are read); if they "
        change += "are right, train/sft.py comes first, or raise {samples}"
        return run.finding("rows too hard", what, change) if run.late("unreadable_frac") <= MANY else None
    return run.finding("rows too easy", what, "give --data rows that the model does not know, or raise {samples}")


def few_groups(run: Record) -> Finding | None:
    kept, least = run.values("kept_groups"), run.setting("min_groups")
    short = sum(count < least for count in kept)
    if tied(run) or no_grade(run) or not short > SHORT * max(1, len(kept)):
        return None
    what = f"{short} of {len(kept)} steps had fewer than {least:.0f} groups to train on, the last ones "
    what += f"{run.late('kept_groups'):.1f}: the gradient is mostly noise"
    return run.finding("few groups", what, "raise {groups} or {max_resample} ({min_groups})")


# ---- GRPO: the policy ------------------------------------------------------------------------------------------------


def entropy_gone(run: Record) -> Finding | None:
    first, late = run.first("entropy"), run.late("entropy")
    if run.steps >= MIN_STEPS and late < ENTROPY_GONE * first:
        what = f"the entropy of a token fell from {first:.3f} to {late:.2g} nats: replies to a prompt are all the same"
        return run.finding("entropy gone", what, "raise {kl_beta} or {clip_high}, or lower {lr}")
    return None


def entropy_explodes(run: Record) -> Finding | None:
    first, late = run.first("entropy"), run.late("entropy")
    if late > max(ENTROPY_ROSE * first, ENTROPY_NOISE):
        what = f"the entropy of a token rose from {first:.3f} to {late:.2f} nats: replies become noise"
        return run.finding("entropy explodes", what, "lower {lr}, or raise {kl_beta}")
    return None


def kl_runs_away(run: Record) -> Finding | None:
    away = [step for step, value in run.curves.get("kl", {}).items() if value > KL_AWAY]
    if run.late("kl") > KL_AWAY:
        what = f"KL to the starting model is {run.late('kl'):.2f} nats a token"
        return run.finding("KL runs away", what, "lower {lr}, or raise {kl_beta}", away[0])
    return None


def many_clipped(run: Record) -> Finding | None:
    share = run.late("clip_ratio/region_mean")
    if share > CLIPPED:
        what = f"the clip stopped {_percent(share)} of the tokens: the policy is far from the one that sampled"
        return run.finding("many tokens clipped", what, "lower {updates} or {lr}")
    return None


def policy_still(run: Record) -> Finding | None:
    """By the KL term; without a reference by dev scores that are all the same."""
    if run.steps < MIN_STEPS or not max(run.values("grad_norm"), default=0.0) > 0:
        return None
    dev = run.values("dev_macro_f1")
    scores = [run.values(name) for name in run.curves if name.startswith("dev_")]
    frozen = len(dev) > 1 and all(max(values) - min(values) < DEV_STILL for values in scores)
    if run.late("kl") < KL_STILL:
        what = f"KL to the starting model is {run.late('kl'):.1g} nats a token: the policy has not moved"
    elif "kl" not in run.curves and frozen and no_grade(run) is None:
        what = f"all {len(dev)} evaluations on dev gave the same numbers: the policy has not moved"
    else:
        return None
    return run.finding("learning rate too low", what, "raise {lr}")


# ---- GRPO: the reward ------------------------------------------------------------------------------------------------


def grade_vanishes(run: Record) -> Finding | None:
    """A grade is given ever less, while the mean reward rises or stays: the frequent grades pay for it."""
    for grade in GRADES:
        first, late = run.early(f"reply_share/{grade}"), run.late(f"reply_share/{grade}")
        vanished = run.rise(f"reply_share/{grade}") < -SURE and first > COMMON and late < VANISHED * first
        if vanished and run.late("reward") >= run.early("reward"):
            what = f"{grade_name(grade)} was {_percent(first)} of the replies and is {_percent(late)}, while the mean "
            what += f"reward went from {run.early('reward'):.2f} to {run.late('reward'):.2f}"
            return run.finding("a grade vanishes", what, "lower {lr}, raise {kl_beta}, or change {balance} to class")
    return None


def reward_without_grades(run: Record) -> Finding | None:
    """The mean reward rises, but not by right grades: by other parts of it, or by the frequent grades alone."""
    if not (run.rise("reward") > SURE and run.rise("reward_balanced") < -SURE):
        return None
    early, late = run.early("reward_balanced"), run.late("reward_balanced")
    what = f"the reward rose from {run.early('reward'):.2f} to {run.late('reward'):.2f}, while the share of right "
    what += f"replies, mean over grades, fell from {early:.2f} to {late:.2f}"
    change = "give label more weight in {rewards}, or change {balance} to class"
    return run.finding("reward without right grades", what, change)


def reward_falls(run: Record) -> Finding | None:
    early, late = run.early("reward_balanced"), run.late("reward_balanced")
    if run.rise("reward_balanced") < -SURE and late < early - FALL and reward_without_grades(run) is None:
        what = f"the share of right replies, mean over grades, fell from {early:.2f} to {late:.2f}"
        return run.finding("reward falls", what, "lower {lr}, or raise {kl_beta}")
    return None


DEV = (dev_falls, grade_missing, dev_unreadable, low_label_mass)
RULES: dict[str, tuple[Rule, ...]] = {
    "pretrain": (not_finite, loss_rises, loss_stays, dev_loss_rises),
    "sft": (not_finite, loss_rises, loss_stays, *DEV),
    "dpo": (not_finite, margin_stays, chosen_falls, *DEV),
    "grpo": (
        not_finite, no_grade, tied, few_groups, entropy_gone, entropy_explodes, kl_runs_away, many_clipped,
        policy_still, grade_vanishes, reward_without_grades, reward_falls, *DEV,
    ),
}  # fmt: skip


def diagnose(run: Record) -> list[Finding]:
    """What the rules of the run's stage find, in their order."""
    return [finding for rule in RULES[run.stage] if (finding := rule(run)) is not None]
