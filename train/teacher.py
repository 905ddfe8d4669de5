"""Writes chains of thought for graded rows: by the bundled evidence teacher, or by an outside LLM.

    python train/teacher.py evidence --data graded.jsonl --out reasoned.jsonl

    python train/teacher.py export --data graded.jsonl --out prompts.jsonl
    (send each line's "messages" to an LLM, write {"id": ..., "reply": ...} lines to replies.jsonl)
    python train/teacher.py import --data graded.jsonl --replies replies.jsonl --out reasoned.jsonl

The bundled teacher needs no service, and finds no more than the words of query and product that its tables know; an
LLM's reasons are better ones.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a fresh checkout runs without being installed

from taosr1.data.flags import ReadFlags
from taosr1.data.judgements import Judgement, read_judgements, write_judgements
from taosr1.runtime.bad_rows import BadRows, shorten
from taosr1.runtime.cli import Parser, add_flags
from taosr1.runtime.jsonl import read_jsonl, write_jsonl
from taosr1.runtime.out_paths import check_out
from taosr1.runtime.outputs import refuse_overwriting
from taosr1.runtime.progress import Bar
from taosr1.task.evidence import Vocabulary, explain
from taosr1.task.rules import Rule, load_rules
from taosr1.task.teacher import read_reply, teacher_messages


def row_ids(rows: Sequence[Judgement]) -> list[str]:
    """One id per row, which connects a teacher's reply to its row, even once the file is sorted or filtered.

    "query_id/item_id" if the row has both, else a checksum of its query and title. A repeated id gets "#2", "#3", ...
    """
    ids: dict[str, None] = {}  # in order, each once
    count: dict[str, int] = {}
    for row in rows:
        if row.query_id and row.item_id and "/" not in row.query_id:  # else "a/b" and "c" would be "a" and "b/c"
            name = f"{row.query_id}/{row.item_id}"
        else:
            text = f"{row.query}\n{row.title}".encode("utf-8", "replace")
            name = "row-" + hashlib.blake2b(text, digest_size=8).hexdigest()
        unique = name
        while unique in ids:
            count[name] = count.get(name, 1) + 1
            unique = f"{name}#{count[name]}"
        ids[unique] = None
    return list(ids)


def export_prompts(
    rows: Sequence[Judgement],
    rules: Sequence[Rule],
    k: int,
    path: str | Path,
    *,
    skip_ungraded: bool = False,
    openai_model: str = "",
) -> int:
    """Write one prompt per graded row, {"id", "messages"}, with its k rules; with `openai_model`, batch requests.

    Returns: the number of prompts.
    Raises, before writing: ValueError naming the first row without a grade (unless skipped), or if no row has one.
    """
    named = list(zip(row_ids(rows), rows))  # ids of all rows: `import` is given all rows too
    for number, (name, row) in enumerate(named, start=1):
        if row.grade is None and not skip_ungraded:
            hint = "grade it, or leave such rows out with --skip-ungraded"
            raise ValueError(f"row {number} (id {shorten(name)}) has no grade: {hint}")
    if all(row.grade is None for row in rows):
        raise ValueError("no row has a grade: there is nothing for a teacher to explain")
    prompts = ((name, teacher_messages(row, rules, k)) for name, row in named if row.grade is not None)
    if not openai_model:
        return write_jsonl(path, ({"id": name, "messages": messages} for name, messages in prompts))
    bodies = ((name, {"model": openai_model, "messages": messages}) for name, messages in prompts)
    request = {"method": "POST", "url": "/v1/chat/completions"}
    return write_jsonl(path, ({"custom_id": name, **request, "body": body} for name, body in bodies))


@dataclass(frozen=True)
class ImportReport:
    """Counts of a teacher's replies; each reply is in one count (`inconsistent` is a part of `accepted`)."""

    accepted: int = 0
    contradicted: int = 0  # can be read, but decides for another grade than the gold one
    unparsable: int = 0  # not the five lines, or words outside the format
    unknown_id: int = 0  # answers no row of the data
    duplicate: int = 0  # a further reply to a row that already has an accepted one
    inconsistent: int = 0  # accepted, though the rule book would decide otherwise from the reply's own steps
    unanswered: int = 0  # graded rows without an accepted reply

    def __str__(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in asdict(self).items())


def import_replies(
    rows: Sequence[Judgement], path: str | Path, *, max_bad_rows: int = 0, rules: Sequence[Rule] | None = None
) -> tuple[list[Judgement], ImportReport]:
    """Add to rows the chains of thought of a replies file: {"id", "reply"} lines, or OpenAI batch output.

    Of several replies to one row the first acceptable one is taken.
    Returns: (the rows that now have a chain of thought, in the data's order; the counts).
    Raises: ValueError naming file and line for a line that is not a reply, beyond the first `max_bad_rows`.
    """
    rules = load_rules() if rules is None else rules
    row_of = dict(zip(row_ids(rows), rows))
    answered: dict[str, Judgement] = {}
    counts: Counter[str] = Counter()
    bad_rows = BadRows(path, max_bad_rows)
    for line, reply in read_jsonl(path, bad_rows, flag="--replies"):
        try:
            name, text = _id_and_text(reply)
        except ValueError as problem:
            bad_rows.add(line, problem)
            continue
        if name not in row_of or row_of[name].grade is None:
            counts["unknown_id"] += 1
        elif name in answered:
            counts["duplicate"] += 1
        else:
            verdict, cot, implied = read_reply(text, row_of[name].grade, rules)
            counts[verdict] += 1
            if verdict == "accepted":
                counts["inconsistent"] += implied != row_of[name].grade
                answered[name] = replace(row_of[name], cot=cot)
    unanswered = sum(row.grade is not None for row in rows) - len(answered)
    return [answered[name] for name in row_of if name in answered], ImportReport(**counts, unanswered=unanswered)


def _id_and_text(line: dict) -> tuple[str, str]:
    """(row id, reply text) of one line of a replies file; a request that failed has an empty, unparsable reply."""
    if "custom_id" in line:
        if not line.get("error") and "response" not in line:
            raise ValueError("an OpenAI batch line without 'response' and 'error'")
        name, text = line["custom_id"], None
        with contextlib.suppress(KeyError, IndexError, TypeError):
            text = line["response"]["body"]["choices"][0]["message"]["content"]
        text = "" if text is None else text
    elif missing := [name for name in ("id", "reply") if name not in line]:
        raise ValueError(f"fields {missing} are missing, expected 'id' and 'reply' (or OpenAI batch output)")
    else:
        name, text = line["id"], line["reply"]
    if not isinstance(name, str) or not isinstance(text, str):
        raise ValueError("fields 'id' and 'reply' have to be text")
    return name, text


def explain_rows(
    rows: Sequence[Judgement], rules: Sequence[Rule], *, drop_disputed: bool = False
) -> tuple[list[Judgement], int]:
    """Add the evidence teacher's chain of thought to every row that has a grade.

    Returns: (the rows; how many are disputed: the rule book makes another grade of the steps than people gave).
    Raises: ValueError if no row has a grade.
    """
    graded = [row for row in rows if row.grade is not None]
    if not graded:
        raise ValueError("no row has a grade: there is nothing for a teacher to explain")
    vocabulary = Vocabulary.of(rows)
    with Bar(graded, desc="explain", unit="row") as bar:
        explained = [(row, explain(row, vocabulary, rules)) for row in bar]
    disputed = sum(not found.agrees(row.grade) for row, found in explained)
    kept = (pair for pair in explained if not drop_disputed or pair[1].agrees(pair[0].grade))
    return [replace(row, cot=found.cot) for row, found in kept], disputed


# --- Command line -----------------------------------------------------------------------------------------------------
def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python train/teacher.py",
        description="Explain your graded rows: by the bundled evidence teacher, or by any outside LLM (export prompts, "
        "send them, import the replies).",
        epilog="The rows that `evidence` and `import` write have a 'cot' column: train on them with python "
        "train/sft.py --data.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    evidence = commands.add_parser("evidence", help="explain the rows by the words they have, without any service")
    dropped = "leave rows out whose steps lead to another grade than people gave (their steps say so)"
    evidence.add_argument("--drop-disputed", action="store_true", help=dropped)
    export = commands.add_parser("export", help="write one chat prompt per graded row")
    export.add_argument("--k", type=int, default=8, help="rules of the rule book shown with each row (default: 8)")
    export.add_argument("--skip-ungraded", action="store_true", help="leave rows without a grade out, do not stop")
    export.add_argument("--openai-batch", metavar="MODEL", default="", help="write OpenAI batch requests to this model")
    importing = commands.add_parser("import", help="attach the replies to their rows")
    replies = 'JSONL of {"id": ..., "reply": ...}, or OpenAI batch output'
    importing.add_argument("--replies", required=True, help=replies)
    data = "graded rows: JSONL, CSV or parquet, ours or ESCI's; the same for `export` and `import`"
    for command in (evidence, export, importing):
        command.add_argument("--data", required=True, help=data)
        command.add_argument("--out", required=True, help="file to write (.jsonl or .jsonl.gz)")
        command.add_argument("--overwrite", action="store_true", help="replace --out where it exists already")
        command.add_argument("--rules", help="rule book (default: the bundled rules.jsonl)")
        add_flags(command, ReadFlags)
    return parser


def _of_evidence(rows: int, explained: int, disputed: int, dropped: bool) -> str:
    graded = explained + disputed * dropped
    said = f"{graded} rows explained" if graded == rows else f"{graded} of {rows} rows have a grade, and were explained"
    said += f"; the steps of {disputed} ({100 * disputed / graded:.1f} %) lead to another grade than people gave: "
    hint = "kept, and said in their Attributes step (--drop-disputed leaves them out)"
    return said + ("left out" if dropped else hint)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns: 0, or 2 after a message for wrong input."""
    args = _parser().parse_args(argv)
    try:
        check_out(args.out)
        refuse_overwriting(args.out, args.overwrite)
        rules = load_rules(args.rules)
        given = vars(args).keys() & {field.name for field in fields(ReadFlags)}
        read = ReadFlags(**{name: getattr(args, name) for name in given})
        rows = read_judgements(args.data, read)
        if args.command == "evidence":
            explained, disputed = explain_rows(rows, rules, drop_disputed=args.drop_disputed)
            print(_of_evidence(len(rows), len(explained), disputed, args.drop_disputed))
            if not explained:
                raise ValueError(f"the steps of no row lead to its grade, so {args.out} was not written")
            print(f"{write_judgements(args.out, explained)} rows with a chain of thought -> {args.out}")
        elif args.command == "export":
            settings = {"skip_ungraded": args.skip_ungraded, "openai_model": args.openai_batch}
            count = export_prompts(rows, rules, args.k, args.out, **settings)
            print(f"{count} prompts -> {args.out}")
        else:
            reasoned, report = import_replies(rows, args.replies, max_bad_rows=read.max_bad_rows, rules=rules)
            print(report)
            if not reasoned:
                raise ValueError(f"no reply in {args.replies} was accepted, so {args.out} was not written")
            print(f"{write_judgements(args.out, reasoned)} rows with a chain of thought -> {args.out}")
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
