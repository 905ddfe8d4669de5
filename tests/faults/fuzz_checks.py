"""Reads one damaged file with every reader of its kind and compares the rows with the oracle's, for fuzz.py."""

from __future__ import annotations

import contextlib
import io
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_files import REPLIED, Sample
from fuzz_oracle import Claims, Spelled, Wrong, canonical, leaves, oracle
from fuzz_rows import check_judgement, named, spaced

from infer import score
from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import Judgement, iter_judgements, read_judgements, read_rows, write_judgements
from taosr1.data.sources import load_rows
from taosr1.evaluation.scores import read_scores
from taosr1.judge_model import load_judge
from taosr1.runtime.bad_rows import NAMED, BadRows
from taosr1.task.rules import load_rules
from train import dpo
from train.teacher import import_replies

ANY = 10**9
TIME_LIMIT_S = 20
FLOOD_CHARS = 12_000  # of an error message, or of all that is printed about one file
RULES = load_rules()
JUDGE = load_judge("bundled", plain=True)


class Hang(BaseException):
    """Over the time limit. Not an OSError, as TimeoutError is: that would pass for a refusal."""


FILE_PROBLEMS = "gzip|UTF-16|UTF-32|zip archive|broken CSV|header|empty column name|separated by|NUL byte|not UTF-8"
FILE_PROBLEMS += r"|more than \d+ bytes|UTF-8, not|HTML or XML"
ARRAY_PROBLEMS = "not JSON|nested too deeply|ends inside the array|expected a comma|follows behind the array"
SKIPPED = re.compile(r"^skipped (?P<path>.*?):(?P<line>\d+): (?P<problem>.*)$", re.MULTILINE)
NOTES = re.compile(r": (\d+) rows? (held|repeated) ")
SUMMARY = re.compile(r": skipped (\d+) of (\d+) rows: ")


@dataclass
class Outcome:
    """The result of one reader: its rows or its error, and the lines that it reported as skipped."""

    rows: list = field(default_factory=list)
    error: str = ""
    printed: str = ""
    skipped: dict[int, str] = field(default_factory=dict)
    lost: int = 0  # rows that the summary counts as skipped
    said: dict[str, int] = field(
        default_factory=dict
    )  # of how many rows it said that they "held" odd characters or "repeated" a pair


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
    outcome.printed = printed.getvalue()
    outcome.skipped = {int(found["line"]): found["problem"] for found in SKIPPED.finditer(printed.getvalue())}
    if found := SUMMARY.search(printed.getvalue()):
        outcome.lost = int(found[1])
    outcome.said = {found[2]: int(found[1]) for found in NOTES.finditer(printed.getvalue())}
    return outcome


def check_rows(
    entry: str,
    sample: Sample,
    spelled: Spelled,
    generous: Outcome,
    strict: Outcome,
    original: set[int],
    check: Callable,
) -> str:
    """Compare the rows of the file with those read, with any number of bad rows allowed and with none.

    Returns: the verdict.
    """
    expected = spelled.rows
    if generous.error and not re.search(r"no rows in this file|no pairs in this file|has no row", generous.error):
        check_refusal(entry, sample, spelled, generous)
        if not strict.error:
            raise Wrong(f"{entry}: refused with bad rows allowed, but not without: {generous.error:.300}")
        return "refused, file"
    if spelled.shared_lines:
        return check_by_order(entry, spelled, generous, check)
    if sample.unquoted:
        check_unquoted(entry, sample, spelled, generous)
        if generous.skipped:
            return "some skipped"
    if not spelled.sound:
        raise Wrong(f"{entry}: the file is damaged as a whole, but {len(generous.rows)} rows came out of it")
    named = generous.skipped
    if generous.lost > NAMED:  # the others are counted, not named
        return "some skipped"
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


def check_by_order(entry: str, spelled: Spelled, generous: Outcome, check: Callable) -> str:
    """Compare rows that cannot be told apart by their lines, which is enough if none was skipped."""
    good = [row for row in spelled.rows.values() if row is not None]
    if not generous.skipped and len(generous.rows) < len(good):
        raise Wrong(f"{entry}: {len(generous.rows)} rows of at least {len(good)}, and none was skipped")
    return "some skipped" if generous.skipped else "all rows"


def check_unquoted(entry: str, sample: Sample, spelled: Spelled, generous: Outcome) -> None:
    """No row of an undamaged table without quoting may vanish inside a cell without being counted."""
    if not sample.damaged and len(generous.rows) + generous.lost != len(sample.rows):
        lost = f"{len(generous.rows)} rows read and {generous.lost} skipped of {len(sample.rows)}"
        raise Wrong(f"{entry}: {lost} in a table without quoting")


def check_refusal(entry: str, sample: Sample, spelled: Spelled, generous: Outcome) -> None:
    """Raise Wrong if a file was refused, whatever may be skipped, but has good rows and is sound as a whole."""
    if "This looks like" in generous.error:  # a column of grades in another scale, which no number of rows may hide
        return
    good = [row for row in spelled.rows.values() if row is not None]
    if "no row has one" in generous.error and not any((named(row) or row).get("gold_grade") for row in good):
        return  # nothing to measure by, in no row
    if re.search("is missing; the row has|could both be the", generous.error) and sample.format not in (
        "jsonl",
        "json",
    ):
        ours = named(good[0]) if good else {}  # all rows of a table have the same columns
        if ours is None or not {"query", "title"} <= ours.keys() and "product_title" not in ours:
            return
    if (
        re.search(
            "separated by|could both separate|names no delimiter|:1: broken CSV|:1: header"
            "|:1: no name in this line|looks like the header|has cells but no name|in quotes as a whole",
            generous.error,
        )
        and sample.damaged
    ):
        return
    problems = f"{FILE_PROBLEMS}|{ARRAY_PROBLEMS}" if sample.format == "json" else FILE_PROBLEMS
    if not re.search(problems, generous.error) or (spelled.sound and good):
        raise Wrong(f"{entry}: refused as a whole: {generous.error:.300}")


def check_replaced(spelled: Spelled, raw: Outcome) -> None:
    """The number of rows with a character replaced by U+FFFD must be reported."""
    held = len(spelled.replaced - set(raw.skipped))
    if not raw.error and raw.said.get("held", 0) != held:
        raise Wrong(f"read_rows: characters of {held} rows were replaced, said of {raw.said.get('held', 0)}")


def check_repeats(outcome: Outcome) -> None:
    """Repeated pairs must have the same text and grade, and their number must be reported."""
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
    raw = attempt(path, lambda: [row for _, row in read_rows(path, BadRows(path, ANY))])
    ours = sample.kind != "replies"  # those are read as UTF-8 alone
    claims = Claims.printed(raw.printed, raw.error != "" and sample.delimiter) if ours else Claims()
    settings = {"claims": claims, "delimiter": sample.delimiter}
    spelled = oracle(sample.data, sample.format, named_gz=sample.gz, **settings)

    def compare(entry: str, read: Callable[[int], list], check: Callable) -> str:
        generous, strict = attempt(path, lambda: read(ANY)), attempt(path, lambda: read(0))
        return check_rows(entry, sample, spelled, generous, strict, original, check)

    if sample.kind == "pairs":
        return check_pairs(sample, path, spelled)
    if sample.kind == "replies":
        return compare_replies(sample, path, spelled)
    check_replaced(spelled, raw)
    if not raw.error:
        check_rows(
            "read_rows",
            sample,
            spelled,
            raw,
            attempt(path, lambda: [row for _, row in read_rows(path)]),
            original,
            same_raw,
        )
    if sample.kind == "scores":
        return compare("read_scores", lambda bad: read_scores(path, ReadFlags(max_bad_rows=bad)), check_score)
    verdict = compare("read_judgements", lambda bad: read_judgements(path, max_bad_rows=bad), check_judgement)
    check_repeats(attempt(path, lambda: read_judgements(path, max_bad_rows=ANY)))
    compare("iter_judgements", lambda bad: list(iter_judgements(path, BadRows(path, bad))), check_judgement)
    compare("load_rows", lambda bad: load_rows(str(path), ReadFlags(max_bad_rows=bad)), check_judgement)
    compare(
        "score.read_pairs",
        lambda bad: score.read_pairs(score.Config(data=str(path), out="out.jsonl", max_bad_rows=bad)),
        check_scored,
    )
    if len(sample.data) % 4 == 0:
        check_round_trip(path)
    return verdict


def check_scored(pair: tuple[dict, Judgement], raw: dict, line: int) -> None:
    same_raw(pair[0], raw, line)
    # Scoring needs no grade: one that cannot be read, and with it a column in another scale, is left out.
    ours = named(raw)
    check_judgement(
        pair[1], {**ours, "grade": None} if ours and pair[1].grade is None and "grade" in ours else raw, line
    )


def check_score(found: tuple, raw: dict, line: int) -> None:
    row, prediction = found
    raw = named(raw) or raw
    check_judgement(row, {**raw, "grade": raw.get("gold_grade")}, line)
    told = [prediction.grade, prediction.tier, list(prediction.probs), prediction.label_mass]
    spelled = {spaced(name).replace(" ", "_"): value for name, value in raw.items()} | raw
    said = [spelled[name] for name in ("grade", "tier", "probs", "label_mass")]
    if told != said or any(isinstance(value, (str, bool)) for value in spelled["probs"]):
        raise Wrong(f"line {line}: prediction is {told}, the file says {said}")


def check_pairs(sample: Sample, path: Path, spelled: Spelled) -> str:
    outcome = attempt(path, lambda: dpo.read_pairs(str(path), JUDGE))
    if outcome.error:
        names_line = re.search(re.escape(str(path)) + r":\d+: ", outcome.error)
        if not names_line and not re.search(FILE_PROBLEMS + "|no pairs", outcome.error):
            raise Wrong(f"dpo.read_pairs: a refusal without a line: {outcome.error:.300}")
        return "refused, row" if names_line and not re.search("gzip", outcome.error) else "refused, file"
    if not spelled.sound or None in spelled.rows.values() or len(spelled.rows) != len(outcome.rows):
        raise Wrong(f"dpo.read_pairs: {len(outcome.rows)} pairs from {len(spelled.rows)} rows")
    for pair, raw in zip(outcome.rows, spelled.rows.values()):
        if "prompt_ids" not in raw:  # a pair as text
            continue
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
        check_refusal("import_replies", sample, spelled, generous)
        return "refused, file"
    told = reports[0]
    counted = told.accepted + told.contradicted + told.unparsable + told.unknown_id + told.duplicate
    if not spelled.sound or counted + len(generous.skipped) != len(spelled.rows):
        raise Wrong(f"import_replies: {told}, and {len(generous.skipped)} skipped of {len(spelled.rows)} rows")
    if bool(generous.skipped) != bool(strict.error):
        raise Wrong(f"import_replies: skipped {generous.skipped}, but with none allowed: {strict.error:.300}")
    # The text around a step is dropped and its name normalised; its own text must be in a reply.
    said = squeezed("\n".join(str(leaf) for row in spelled.rows.values() for leaf in leaves(row)))
    if lost := [
        row.cot
        for row in generous.rows
        if not all(squeezed(line.partition(": ")[2]) in said for line in row.cot.split("\n"))
    ]:
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
