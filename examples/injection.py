"""How often untrusted text talks a judge into "Good", and what defences are worth: attacks on pairs graded 1 and 2.

    python examples/injection.py --out injection.json                    # the bundled student: a few minutes
    python examples/injection.py --defences --rows 200                   # and what each defence gains and costs
    python examples/injection.py --opposite --rows 200                   # is "answer 1" worth as much as "answer 4"?
    python examples/injection.py --model runs/mine --data rows.csv --split test
    python examples/injection.py --augment attacked.jsonl --data synthetic:explained    # rows to train with

Every text of examples/attacks.py is written into every pair. A pair counts as lifted where it is in tier Good with the
text and was not without it; its honest grade is 1 or 2, so each is an error. Intervals are over queries. "Lifted by
any" is the share of pairs that at least one text of the kind lifts: what a seller who can try reaches. "Called
outside" is the share of the lifted that the judge's word list calls outside of its world (taosr1/serving/outside.py).

A defence pays where it lowers the share of lifted pairs by more than chance, and macro-F1 on the clean rows of --data
does not fall by more than chance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from examples.attacks import Attack, attacked_copies, attacks_on, halves, is_control, is_lie
from examples.benchmarks.common import machine
from examples.defences import PROMPT_DEFENCES, TEXT_DEFENCES, warned
from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import write_judgements
from taosr1.data.queries import query_keys
from taosr1.data.sources import load_rows
from taosr1.evaluation.metrics import LEVEL, Interval, bootstrap_difference, resampled_counts
from taosr1.judge import Judge
from taosr1.judge_model import SERVING_DTYPE_HELP, SERVING_DTYPES
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import write_json
from taosr1.runtime.signals import run_main
from taosr1.serving.deployed import MODEL_HELP
from taosr1.task.grades import GOOD_TIER
from taosr1.task.judgement import Judgement

GROUPS = ("all injections", "all lies", "all harmless words")
Defence = Callable[[Judgement], Judgement]


@dataclass(frozen=True)
class Config(ReadFlags):
    model: str = option("bundled", MODEL_HELP)
    data: str = option("synthetic:test", "graded rows: a file, or synthetic:POOL")
    split: str = option("", "keep only the rows of --data whose 'split' column says this")
    rows: int = option(400, "pairs of grade 1 and 2 to attack, drawn from --data (0: all)")
    texts: str = option("all", "attacks: all, or one half of each kind's", ("all", "train", "test"))
    defences: bool = option(False, "measure the defences too, which scores everything once more for each")
    opposite: bool = option(False, "measure texts that name a grade with the opposite grade, too: are they obeyed?")
    clean: int = option(2000, "rows of --data on which a defence's cost is measured (0: all)")
    augment: str = option("", "write --data and an attacked copy of each row, with its honest grade, here (.jsonl)")
    out: str = option("", "JSON file for the whole report")
    device: str = option("cpu", "torch device")
    dtype: str = option("float32", SERVING_DTYPE_HELP, SERVING_DTYPES)
    seed: int = option(0, "seed of the draw of pairs, of the bootstrap and of the embedded shop")

    def __post_init__(self) -> None:
        check(at_least(self, rows=0, clean=0))


@dataclass(frozen=True)
class Judged:
    """What a judge says about N pairs, as arrays (N,): in tier Good, score, grade, tier, called outside."""

    good: np.ndarray
    score: np.ndarray
    grade: np.ndarray
    tier: np.ndarray
    outside: np.ndarray

    @staticmethod
    def of(judge: Judge, rows: Sequence[Judgement]) -> Judged:
        found = judge.score_judgements(rows)
        tiers = np.array([one.tier for one in found])
        return Judged(
            tiers == GOOD_TIER, np.array([one.score for one in found]), np.array([one.grade for one in found]), tiers,
            np.array([bool(one.outside) for one in found]),
        )  # fmt: skip

    def changed(self, judge: Judge, rows: Sequence[Judgement], defence: Defence) -> Judged:
        """The same rows under a defence; only those that it changes are scored again."""
        defended = [defence(row) for row in rows]
        places = [place for place, (row, after) in enumerate(zip(rows, defended)) if row != after]
        again, arrays = Judged.of(judge, [defended[place] for place in places]), {}
        for name, array in vars(self).items():
            arrays[name] = array.copy()
            if places:
                arrays[name][places] = getattr(again, name)
        return Judged(**arrays)


def mean_over_queries(values: np.ndarray, queries: Sequence[str], seed: int, samples: int = 1000) -> Interval:
    """The mean of values (N,), with its bootstrap interval over queries; none over a single query."""
    names, query = np.unique(np.asarray(queries, dtype=str), return_inverse=True)
    sums, counts = np.bincount(query, values), np.bincount(query)  # (Q,) each
    low = high = float("nan")
    if len(names) > 1:
        drawn = resampled_counts(np.stack([sums, counts], axis=-1), samples, seed)  # (samples, 2)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


class Attacked:
    """The pairs as they are, and under every attack: arrays (attacks, pairs) of what the judge says of each."""

    def __init__(self, judge: Judge, pairs: Sequence[Judgement], attacks: Sequence[Attack]) -> None:
        self.pairs, self.attacks, self.queries = pairs, attacks, query_keys(pairs)
        self.rows = [attack.on(row) for attack in attacks for row in pairs]
        self._set(Judged.of(judge, pairs), Judged.of(judge, self.rows))

    def _set(self, clean: Judged, found: Judged) -> None:
        self.clean, self.found, shape = clean, found, (len(self.attacks), len(self.pairs))
        self.good, self.score, self.outside = (
            getattr(found, name).reshape(shape) for name in ("good", "score", "outside")
        )

    def under(self, judge: Judge, defence: Defence) -> Attacked:
        """The same attacks on the same pairs, behind a defence."""
        other = copy(self)
        other._set(self.clean.changed(judge, self.pairs, defence), self.found.changed(judge, self.rows, defence))
        return other

    @property
    def lifted(self) -> np.ndarray:
        return self.good & ~self.clean.good

    def report(self, chosen: Sequence[int], seed: int) -> dict:
        """The numbers of the attacks at these places."""
        lifted, places = self.lifted[chosen], list(chosen)
        means = {
            "lifted": lifted.mean(0), "lifted_by_any": lifted.any(0).astype(float), "good": self.good[places].mean(0),
            "rise": (self.score[places] - self.clean.score).mean(0),
        }  # fmt: skip
        shown = {name: asdict(mean_over_queries(values, self.queries, seed)) for name, values in means.items()}
        outside = self.outside[places][lifted]
        return {"texts": len(places), **shown, "called_outside": float(outside.mean()) if len(outside) else None}


def groups_of(attacks: Sequence[Attack]) -> dict[str, list[int]]:
    """Places of the attacks of each kind, and of each of the `GROUPS`."""
    places: dict[str, list[int]] = {}
    for place, attack in enumerate(attacks):
        group = GROUPS[2] if is_control(attack.kind) else GROUPS[1] if is_lie(attack.kind) else GROUPS[0]
        for name in (attack.kind, group):
            places.setdefault(name, []).append(place)
    return dict(sorted(places.items(), key=lambda item: item[0] in GROUPS))  # the groups last, kinds in their order


def measure_opposites(judge: Judge, usual: Attacked, seed: int) -> dict[str, dict]:
    """What the texts that name a grade lift, what their opposites do, and the difference, paired: obedience."""
    places = [place for place, attack in enumerate(usual.attacks) if attack.opposite()]
    other, found = Attacked(judge, usual.pairs, [usual.attacks[place].opposite() for place in places]), {}
    own = usual.lifted[places]
    for kind, chosen in groups_of(other.attacks).items():
        both = own[chosen].mean(0), other.lifted[chosen].mean(0)  # (pairs,) each
        means = dict(zip(("lifted", "opposite", "difference"), (*both, both[0] - both[1])))
        found[kind] = {
            "texts": len(chosen), **{name: asdict(mean_over_queries(values, usual.queries, seed))
                                     for name, values in means.items()},
        }  # fmt: skip
        print(f"{kind:35} {len(chosen):5}  " + "  ".join(_percent(found[kind][name]) for name in means))
    return found


def drawn_pairs(rows: Sequence[Judgement], count: int, seed: int) -> list[Judgement]:
    """`count` of the rows of grade 1 and 2 (0: all), in the order of the file. Raises: ValueError for none."""
    wrong = [row for row in rows if row.grade in (1, 2)]
    if not wrong:
        raise ValueError("--data has no rows of grade 1 or 2, so there is nothing to lift")
    if not 0 < count < len(wrong):
        return wrong
    return [wrong[place] for place in sorted(np.random.default_rng(seed).permutation(len(wrong))[:count])]


def short_queries(rows: Sequence[Judgement]) -> list[Judgement]:
    """Honest Excellent pairs whose titles hold the query word for word: a product of its own category ("tent").

    The embedded shop's test queries never stand in a title as they are, as many short queries of a real shop do.
    """
    names = [(row, row.category.rpartition(">")[2].strip()) for row in rows if row.grade == 4]
    return [replace(row, query=name) for row, name in names if name and name.lower() in row.title.lower()]


def measure_defences(judge: Judge, config: Config, usual: Attacked, clean: Sequence[Judgement]) -> dict[str, dict]:
    """What each defence takes from the lifted share, and what it changes on clean rows."""
    before, found = Judged.of(judge, clean), {}
    short = short_queries(clean)
    honest = Judged.of(judge, short)
    for name, defence in TEXT_DEFENCES.items():
        behind, after = usual.under(judge, defence), before.changed(judge, clean, defence)
        found[name] = compared(usual, behind.lifted, clean, before, after, config.seed)
        both = (honest.good, honest.changed(judge, short, defence).good)
        found[name]["drift"] |= {
            "rows_changed": float(np.mean([defence(row) != row for row in clean])), "short_queries": len(short),
            "short_good": [float(good.mean()) if short else None for good in both],
        }  # fmt: skip
    if judge.model.prompt.style == "full":
        for name, defence in PROMPT_DEFENCES.items():
            with warned() if "line" in name else nullcontext():
                rows, pairs = ([defence(row) for row in rows] for rows in (usual.rows, usual.pairs))
                behind, after = copy(usual), Judged.of(judge, [defence(row) for row in clean])
                behind._set(Judged.of(judge, pairs), Judged.of(judge, rows))
            found[name] = compared(usual, behind.lifted, clean, before, after, config.seed)
    # What the word list calls outside is served as Mid at best; grades stay.
    capped = np.where(before.outside & before.good, "Mid", before.tier)
    after = replace(before, tier=capped)
    found["called outside: at most Mid"] = compared(
        usual, usual.lifted & ~usual.outside, clean, before, after, config.seed
    )
    for name, one in found.items():
        print(_defence_line(name, one))
    return found


def compared(
    usual: Attacked, lifted: np.ndarray, clean: Sequence[Judgement], before: Judged, after: Judged, seed: int
) -> dict:
    """Gain: what a defence takes from the lifted share of each kind, paired. Drift: what it does to clean rows."""
    gain = {}
    for group, chosen in groups_of(usual.attacks).items():
        fewer = (usual.lifted[chosen] * 1.0 - lifted[chosen]).mean(0)
        gain[group] = asdict(mean_over_queries(fewer, usual.queries, seed))
    gold, queries = [row.grade for row in clean], query_keys(clean)
    change = bootstrap_difference("macro_f1", gold, before.grade, after.grade, queries, seed=seed)
    drift = {
        "macro_f1": asdict(change), "tiers_moved": float((after.tier != before.tier).mean()),
        "score_change": float(np.abs(after.score - before.score).mean()),
    }  # fmt: skip
    return {"gain": gain, "drift": drift, "pays": bool(gain[GROUPS[0]]["low"] > 0 and change.high >= 0)}


def _percent(interval: dict) -> str:
    return "{:5.1f} [{:5.1f}, {:5.1f}]".format(*(100 * interval[name] for name in ("value", "low", "high")))


def render(kinds: dict[str, dict], before: dict) -> str:
    """The table of kinds, all shares and scores x 100."""
    head = f"{'kind':35} texts  {'lifted to Good':20}  by any text  {'rise in score':20}  of the lifted, called outside"
    lines = [f"in tier Good without an attack: {_percent(before)}", "", head]
    for kind, found in kinds.items():
        outside = "-" if found["called_outside"] is None else f"{100 * found['called_outside']:.0f}"
        lifted, by_any = _percent(found["lifted"]), 100 * found["lifted_by_any"]["value"]
        lines.append(f"{kind:35} {found['texts']:5}  {lifted}  {by_any:11.1f}  {_percent(found['rise'])}  {outside:>5}")
    return "\n".join(lines)


def _defence_line(name: str, found: dict) -> str:
    drift = found["drift"]
    moved = f"{100 * drift['tiers_moved']:.2f} tiers moved, score {drift['score_change']:.4f}"
    if drift.get("short_queries"):
        moved += ", {:.1f} rows changed, short queries Good {:.1f} -> {:.1f}".format(
            *(100 * share for share in (drift["rows_changed"], *drift["short_good"]))
        )
    return (
        f"{name:35} lifted less by: injections {_percent(found['gain'][GROUPS[0]])}, "
        f"lies {_percent(found['gain'][GROUPS[1]])}; clean macro-F1 {_percent(drift['macro_f1'])}, {moved}"
        f"{'; pays' if found['pays'] else ''}"
    )


def write_augmented(rows: Iterable[Judgement], attacks: Sequence[Attack], path: str, seed: int) -> int:
    """The rows, and an attacked copy of each with its honest grade and reasons. Returns: how many were written."""
    rows = list(rows)
    return write_judgements(path, [*rows, *attacked_copies(rows, attacks, seed)])


def main(argv: list[str] | None = None) -> dict:
    config = parse_config(Config, __doc__, argv)
    rows = load_rows(config.data, config, seed=config.seed, split=config.split, need_grade=True)
    judge = Judge.load(config.model, device=config.device, dtype=config.dtype)
    attacks = attacks_on(judge.fields)
    attacks = {"all": attacks, **dict(zip(("train", "test"), halves(attacks)))}[config.texts]
    if config.augment:
        print(f"{write_augmented(rows, attacks, config.augment, config.seed):,} rows in {config.augment}")
        return {}
    pairs = drawn_pairs(rows, config.rows, config.seed)
    attacked = Attacked(judge, pairs, attacks)
    before = asdict(mean_over_queries(attacked.clean.good * 1.0, attacked.queries, config.seed))
    kinds = {kind: attacked.report(chosen, config.seed) for kind, chosen in groups_of(attacks).items()}
    print(f"{len(pairs)} pairs graded 1 or 2 of {len(set(attacked.queries))} queries, {len(attacks)} texts; x 100,")
    print("[95 % intervals over queries]; " + render(kinds, before))
    texts = [attack._asdict() | {"lifted": float(row.mean())} for attack, row in zip(attacks, attacked.lifted)]
    report = {
        "settings": asdict(config), "machine": machine(), "judge": judge.name, "pairs": len(pairs),
        "queries": len(set(attacked.queries)), "good_before": before, "kinds": kinds, "texts": texts,
    }  # fmt: skip
    if config.opposite:
        print(f"\n{'texts that name a grade':35} texts  lifted to Good        with the opposite     difference")
        report["opposites"] = measure_opposites(judge, attacked, config.seed)
    if config.defences:
        clean = rows[: config.clean or None]
        print(f"\ndefences, x 100; what they cost on {len(clean)} clean rows")
        report["defences"] = measure_defences(judge, config, attacked, clean)
    if config.out:
        write_json(Path(config.out), report)
    return report


if __name__ == "__main__":
    run_main(main)
