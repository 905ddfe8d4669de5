"""Damage data files in every way and read them through the real entry points: no bare traceback, no row silently changed.

    python tests/faults/fuzz.py --files 10000 --seed 0        # one to two minutes on one core
    python tests/faults/fuzz.py --first 4711 --files 1        # file 4711 of seed 0 alone

File n depends on (seed, n) only. It begins as a valid file (JSONL, CSV or TSV, plain or gzipped; our columns, ESCI's, preference
pairs, scores, a teacher's replies), is damaged by up to three operators (fuzz_files.py), and is read with no bad row allowed and with
any number. What is right is decided by readers that share no code with the package (fuzz_oracle.py). The verdict of a file is one of

    all rows       every row of the damaged file was read, each as the oracle spells it
    some skipped   as before, but for rows that are named by line; kept + skipped is the number of rows in the file
    refused        a ValueError or OSError that names the file (and, for a bad row, its first bad line)
    FAILURE        another exception, a wrong or a lost row, a good row refused, a wrong count, a flood of text, or over 10 seconds

Failures are saved for reproduction, and the program ends with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]  # a checkout runs without being installed

from fuzz_files import REPLIED, VOCAB, Sample, make
from fuzz_oracle import Spelled, Wrong, canonical, check_judgement, leaves, oracle

from infer import evaluate, score
from taosr1.data.judgements import Judgement, iter_judgements, read_judgements, read_rows, write_judgements
from taosr1.data.sources import load_rows
from taosr1.data.teacher_files import import_replies
from taosr1.runtime.bad_rows import BadRows
from taosr1.task.rules import load_rules
from train import dpo

ANY = 10**9
TIME_LIMIT_S = 10
FLOOD_CHARS = 12_000  # of an error message, or of all that is printed about one file
RULES = load_rules()


class Hang(BaseException):
    """Over the time limit. Not an OSError, as TimeoutError is: that would pass for a refusal."""


# ---- reading and judging -----------------------------------------------------------------------------------------------------

FILE_PROBLEMS = r"gzip|UTF-16|UTF-32|zip archive|broken CSV|header|empty column name|separated by|NUL byte|not UTF-8|more than \d+ bytes"
SKIPPED = re.compile(r"^skipped (?P<path>.*?):(?P<line>\d+): (?P<problem>.*)$", re.MULTILINE)
NOTES = re.compile(r": (\d+) rows? (held|repeated) ")
SUMMARY = re.compile(r": skipped (\d+) of (\d+) rows: ")


@dataclass
class Outcome:
    """What one entry point made of a file: its rows, or the error it raised, and which lines it said to have skipped."""

    rows: list = field(default_factory=list)
    error: str = ""
    skipped: dict[int, str] = field(default_factory=dict)
    lost: int = 0  # rows that the summary counts as skipped
    said: dict[str, int] = field(default_factory=dict)  # of how many rows it said that they "held" odd characters or "repeated" a pair


def attempt(path: Path, read: Callable[[], list]) -> Outcome:
    """Run one entry point. Raises: Wrong for anything but rows or a clean refusal."""
    printed = io.StringIO()
    outcome = Outcome()
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        with contextlib.redirect_stderr(printed):
            outcome.rows = read()
    except (ValueError, OSError) as error:
        outcome.error = str(error)
        if str(path) not in outcome.error:
            raise Wrong(f"{type(error).__name__} that does not name the file: {error!s:.200}") from error
    except Hang:
        raise Wrong(f"no answer within {TIME_LIMIT_S} s") from None
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {error!s:.200}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if max(len(outcome.error), len(printed.getvalue())) > FLOOD_CHARS:
        raise Wrong(f"a flood: {len(outcome.error)} characters of error, {len(printed.getvalue())} printed")
    outcome.skipped = {int(found["line"]): found["problem"] for found in SKIPPED.finditer(printed.getvalue())}
    if found := SUMMARY.search(printed.getvalue()):
        outcome.lost = int(found[1])
    outcome.said = {found[2]: int(found[1]) for found in NOTES.finditer(printed.getvalue())}
    return outcome


def check_rows(entry: str, sample: Sample, spelled: Spelled, generous: Outcome, strict: Outcome, original: set[int], check: Callable) -> str:
    """Compare what was read with any number of bad rows allowed, and with none, with what the file says; returns the verdict."""
    expected = spelled.rows
    if generous.error and not re.search(r"no rows in this file|no pairs in this file|has no row", generous.error):
        refuse_whole(entry, spelled, generous)
        if not strict.error:
            raise Wrong(f"{entry}: refused with bad rows allowed, but not without: {generous.error:.300}")
        return "refused, file"
    if not spelled.whole:
        raise Wrong(f"{entry}: the file is damaged as a whole, but {len(generous.rows)} rows came out of it")
    named = generous.skipped
    if strays := set(named) - set(expected):
        raise Wrong(f"{entry}: skipped lines {sorted(strays)}, where no row begins")
    if named and generous.lost < len(named):
        raise Wrong(f"{entry}: {len(named)} rows named as skipped, {generous.lost} counted")
    kept = [line for line in expected if line not in named]
    if len(kept) != len(generous.rows):
        raise Wrong(f"{entry}: {len(generous.rows)} rows kept and {len(named)} skipped of {len(expected)} in the file")
    for line, row in zip(kept, generous.rows):
        if expected[line] is None:
            raise Wrong(f"{entry}: line {line} is no row, but one was made of it: {row!r:.200}")
        check(row, expected[line], line)
    if refused := [line for line in named if line in original and "repeated ids" not in named[line]]:
        raise Wrong(f"{entry}: line {refused[0]} is a good row, but it was refused: {named[refused[0]]}")
    if named:
        first = min(named)
        if not strict.error.rpartition(f"{sample.name}:")[2].startswith(f"{first}: "):
            raise Wrong(f"{entry}: the first bad line is {first}, but with none allowed it says: {strict.error:.300}")
        return "some skipped"
    if strict.error and not generous.error:
        raise Wrong(f"{entry}: nothing was skipped, but with no bad row allowed it says: {strict.error:.300}")
    return "all rows" if generous.rows else "no rows"


def refuse_whole(entry: str, spelled: Spelled, generous: Outcome) -> None:
    """Raise Wrong for a file that was refused, whatever may be skipped, though it has good rows and nothing is wrong with it as a whole."""
    good = any(row is not None for row in spelled.rows.values())
    if not re.search(FILE_PROBLEMS, generous.error) or (spelled.whole and good and "separated by" not in generous.error):
        raise Wrong(f"{entry}: refused as a whole: {generous.error:.300}")


def check_replaced(spelled: Spelled, raw: Outcome) -> None:
    """What was replaced by U+FFFD has to be said."""
    held = len(spelled.replaced - set(raw.skipped))
    if not raw.error and raw.said.get("held", 0) != held:
        raise Wrong(f"read_rows: characters of {held} rows were replaced, said of {raw.said.get('held', 0)}")


def check_repeats(outcome: Outcome) -> None:
    """Pairs that come again say the same, and it has to be said that they do."""
    seen: dict[tuple, list[Judgement]] = {}
    for row in outcome.rows:
        if row.query_id and row.item_id:
            seen.setdefault((row.query_id, row.item_id), []).append(row)
    for ids, rows in seen.items():
        if len({(row.query, row.title) for row in rows}) > 1 or len({row.grade for row in rows} - {None}) > 1:
            raise Wrong(f"read_judgements: rows that contradict each other were kept for {ids}: {rows!r:.300}")
    again = sum(len(rows) - 1 for rows in seen.values())
    if not outcome.error and outcome.said.get("repeated", 0) != again:
        raise Wrong(f"read_judgements: {again} pairs come again, said of {outcome.said.get('repeated', 0)}")


def same_raw(row: dict, raw: dict, line: int) -> None:
    if canonical(row) != canonical(raw):
        raise Wrong(f"line {line}: read as {row!r:.200}, the file says {raw!r:.200}")


def examine(sample: Sample, path: Path, original: set[int]) -> str:
    """Read a file through every entry point of its kind. Returns the verdict; raises Wrong."""
    spelled = oracle(sample.data, sample.format, named_gz=sample.gz)

    def compare(entry: str, read: Callable[[int], list], check: Callable) -> str:
        generous, strict = attempt(path, lambda: read(ANY)), attempt(path, lambda: read(0))
        return check_rows(entry, sample, spelled, generous, strict, original, check)

    if sample.kind == "pairs":
        return check_pairs(sample, path, spelled)
    if sample.kind == "replies":
        return compare_replies(sample, path, spelled)
    raw = attempt(path, lambda: [row for _, row in read_rows(path, BadRows(path, ANY))])
    check_replaced(spelled, raw)
    if not raw.error:
        check_rows("read_rows", sample, spelled, raw, attempt(path, lambda: [row for _, row in read_rows(path)]), original, same_raw)
    if sample.kind == "scores":
        return compare("evaluate.read_scores", read_scores(path), check_score)
    verdict = compare("read_judgements", lambda bad: read_judgements(path, max_bad_rows=bad), check_judgement)
    check_repeats(attempt(path, lambda: read_judgements(path, max_bad_rows=ANY)))
    compare("iter_judgements", lambda bad: list(iter_judgements(path, BadRows(path, bad))), check_judgement)
    compare("load_rows", lambda bad: load_rows(str(path), max_bad_rows=bad), check_judgement)
    compare("score.read_pairs", lambda bad: score.read_pairs(score.Config(data=str(path), out="out.jsonl", max_bad_rows=bad)), check_scored)
    if len(sample.data) % 4 == 0:
        check_round_trip(path)
    return verdict


def check_scored(pair: tuple[dict, Judgement], raw: dict, line: int) -> None:
    same_raw(pair[0], raw, line)
    check_judgement(pair[1], raw, line)


def read_scores(path: Path) -> Callable[[int], list]:
    def read(bad: int) -> list:
        rows, predictions, *_ = evaluate.read_scores(evaluate.Config(scores=str(path), max_bad_rows=bad))
        return list(zip(rows, predictions))

    return read


def check_score(found: tuple, raw: dict, line: int) -> None:
    row, prediction = found
    check_judgement(row, {**raw, "grade": raw.get("gold_grade")}, line)
    told = [prediction.grade, prediction.tier, list(prediction.probs), prediction.label_mass]
    said = [raw[name] for name in ("grade", "tier", "probs", "label_mass")]
    if told != said or any(isinstance(value, (str, bool)) for value in raw["probs"]):
        raise Wrong(f"line {line}: prediction is {told}, the file says {said}")


def check_pairs(sample: Sample, path: Path, spelled: Spelled) -> str:
    outcome = attempt(path, lambda: dpo.read_pairs(str(path), VOCAB))
    if outcome.error:
        names_line = re.search(re.escape(str(path)) + r":\d+: ", outcome.error)
        if not names_line and not re.search(FILE_PROBLEMS + "|no pairs", outcome.error):
            raise Wrong(f"dpo.read_pairs: a refusal without a line: {outcome.error:.300}")
        return "refused, row" if names_line and not re.search("gzip", outcome.error) else "refused, file"
    if not spelled.whole or None in spelled.rows.values() or len(spelled.rows) != len(outcome.rows):
        raise Wrong(f"dpo.read_pairs: {len(outcome.rows)} pairs from {len(spelled.rows)} rows")
    for pair, raw in zip(outcome.rows, spelled.rows.values()):
        told = [pair.chosen.prompt, pair.chosen.reply, pair.rejected.prompt, pair.rejected.reply]
        if told != [raw[name] for name in ("prompt_ids", "chosen_ids", "prompt_ids", "rejected_ids")]:
            raise Wrong(f"dpo.read_pairs: {told}, the file says {raw!r:.200}")
    return "all rows"


def compare_replies(sample: Sample, path: Path, spelled: Spelled) -> str:
    def read(bad: int) -> list:
        rows, report = import_replies(REPLIED, path, max_bad_rows=bad, rules=RULES)
        reports.append(report)
        return rows

    reports: list = []
    generous, strict = attempt(path, lambda: read(ANY)), attempt(path, lambda: read(0))
    if generous.error:
        refuse_whole("import_replies", spelled, generous)
        return "refused, file"
    told = reports[0]
    counted = told.accepted + told.contradicted + told.unparsable + told.unknown_id + told.duplicate
    if not spelled.whole or counted + len(generous.skipped) != len(spelled.rows):
        raise Wrong(f"import_replies: {told}, and {len(generous.skipped)} skipped of {len(spelled.rows)} rows")
    if bool(generous.skipped) != bool(strict.error):
        raise Wrong(f"import_replies: skipped {generous.skipped}, but with none allowed: {strict.error:.300}")
    # What stands around a step is dropped and its name is spelled as it should be; what it says is in a reply.
    said = squeezed("\n".join(str(leaf) for row in spelled.rows.values() for leaf in leaves(row)))
    if lost := [row.cot for row in generous.rows if not all(squeezed(line.partition(": ")[2]) in said for line in row.cot.split("\n"))]:
        raise Wrong(f"import_replies: {lost[0]!r:.200} is in no reply")
    return "some skipped" if generous.skipped else "all rows"


def squeezed(text: str) -> str:
    return re.sub(r"[\s*`]", "", text)


def check_round_trip(path: Path) -> None:
    """Read, write, read: the same rows."""
    outcome = attempt(path, lambda: read_judgements(path, max_bad_rows=ANY))
    if outcome.error:
        return
    again = path.with_name("again.jsonl")
    write_judgements(again, outcome.rows)
    second = attempt(again, lambda: read_judgements(again))
    if second.error or second.rows != outcome.rows:
        raise Wrong(f"round trip: {second.error or 'other rows'}")


# ---- the run -----------------------------------------------------------------------------------------------------------------


def judge(seed: int, number: int, folder: Path, keep: Path | None) -> tuple[str, list[str], str]:
    """Make and examine one file. Returns (verdict, operators, what failed)."""
    sample, names, original = make(seed, number)
    path = folder / sample.name
    path.write_bytes(sample.data)
    try:
        verdict, problem = examine(sample, path, original), ""
    except Wrong as wrong:
        verdict, problem = "FAILURE", f"file {number} ({sample.kind}, {', '.join(names) or 'undamaged'}): {wrong}"
    if problem and keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / f"seed{seed}-{number}-{path.name}").write_bytes(sample.data)
        (keep / f"seed{seed}-{number}.txt").write_text(problem + "\n", encoding="utf-8", errors="backslashreplace")
    return verdict, names or ["(undamaged)"], problem


def run(files: int, seed: int, first: int = 0, keep: Path | None = None) -> tuple[dict[str, Counter], list[str]]:
    """Examine files first .. first + files - 1. Returns (verdicts by operator, and under "all files"; the failures in words)."""
    table: dict[str, Counter] = {"all files": Counter()}
    failures: list[str] = []

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(first, first + files):
                verdict, names, problem = judge(seed, number, Path(folder), keep)
                failures += [problem] if problem else []
                for name in ("all files", *names):
                    table.setdefault(name, Counter())[verdict] += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return table, failures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000, help="how many files (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the files and their damage (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first file (default: 0)")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "taosr1-fuzz", help="folder for the files that failed")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    table, failures = run(args.files, args.seed, args.first, args.keep)
    verdicts = ["all rows", "some skipped", "refused, row", "refused, file", "no rows", "FAILURE"]
    print(f"{'operator':<26}" + "".join(f"{verdict:>15}" for verdict in verdicts))
    for name in sorted(table, key=lambda name: (name == "all files", name)):
        print(f"{name:<26}" + "".join(f"{table[name][verdict]:>15}" for verdict in verdicts))
    print(f"{args.files} files in {time.perf_counter() - start:.0f} s (seed {args.seed}): {len(failures)} failures")
    for problem in failures[:20]:
        print(problem)
    if failures:
        print(f"saved in {args.keep}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
