"""Scored pairs as files for other programs: CSV, TREC, Quepid, Elasticsearch and OpenSearch.

Judgements rate a product 0 to 3: the most probable grade less 1, since these systems take 0 for irrelevant. Formats are
written after the systems' own documents. The version of the rubric (`prompt_sha`) is where they have a place for it:

- TREC: qrels `qid 0 docid rating` and run `qid Q0 docid rank score tag`, as trec_eval 9 reads them. The run's tag is
  `taosr1-PROMPT_SHA`; qrels have neither a tag nor comments.
- Quepid 8: CSV `query,docid,rating`, for "import ratings". It knows these columns alone.
- Elasticsearch 8 and 9: the body of `POST INDEX/_rank_eval`, which refuses a field that it does not know.
- OpenSearch 3: the body of `PUT _plugins/_search_relevance/judgments` (IMPORT_JUDGMENT, ratings as text). The
  `description` says it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taosr1.data.predictions import to_cell
from taosr1.data.queries import plain
from taosr1.runtime.bad_rows import shorten
from taosr1.runtime.jsonl import clean_text, write_jsonl
from taosr1.runtime.outputs import STANDARD, output_stream
from taosr1.runtime.text_lines import BYTE_ORDER_MARK
from taosr1.serving.scorer import Score
from taosr1.task.judgement import Judgement

ROW_FORMATS = ("jsonl", "csv")  # every input column and the prediction
JUDGEMENT_FORMATS = ("trec", "quepid", "elasticsearch", "opensearch")
FORMATS = (*ROW_FORMATS, *JUDGEMENT_FORMATS)
BY_QUERY_ID = ("trec", "elasticsearch")  # the others know a query by its text
_BY_NAME = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".run": "trec", ".qrels": "trec", ".trec": "trec"}
RUN_TAG = "taosr1"


def format_of(out: str, given: str = "") -> str:
    """The format of `--out`: as given, else by its name; standard output is JSON Lines.

    Raises: ValueError where the name says none, or another one than was given.
    """
    suffix = _suffix(out)
    named = "jsonl" if out == STANDARD else _BY_NAME.get(suffix, "")
    if not given and not named:
        raise ValueError(
            f"--out is {out!r}, expected a file name ending in .jsonl, .csv, .run or .qrels (each also .gz), - for the "
            f"standard output, or --format with one of {', '.join(FORMATS)}"
        )
    if given and named and out != STANDARD and given != named and (given, named) != ("quepid", "csv"):
        raise ValueError(f"--format {given}: --out {out} is named as {named}; give a name ending otherwise")
    return given or named


def _suffix(out: str) -> str:
    return Path(out.lower().removesuffix(".gz")).suffix


# ---- Rows with their prediction --------------------------------------------------------------------------------------


def write_rows(out: str, format: str, rows: Iterable[dict], columns: Sequence[str], ascii_only: bool) -> int:
    """Write JSON Lines or CSV; returns the number of rows. columns, ascii_only: of CSV, all that occur in any row.

    CSV opens in a spreadsheet as it is: cells that would run as formulas are marked (`to_cell`), and a byte order mark
    says that it is UTF-8 where the text is not ASCII alone. Our own reader takes both away.
    """
    if format == "jsonl":
        return write_jsonl(out, rows)
    written = 0
    with output_stream(out) as stream:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        stream.write((("" if ascii_only else BYTE_ORDER_MARK) + text.getvalue()).encode())
        for row in rows:
            text.seek(0)
            text.truncate()
            writer.writerow([clean_text(to_cell(row.get(name))) for name in columns])
            stream.write(text.getvalue().encode())
            written += 1
    return written


# ---- Judgements and runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rated:
    """One pair as these formats need it. rating: 0 to 3."""

    query_id: str
    query: str
    item_id: str
    rating: int
    score: float


def check_ids(rows: Sequence[Judgement], format: str) -> None:
    """Before scoring: whether the rows have the ids that a format needs. Says where query ids are made from the text.

    Raises: ValueError naming the first rows without an item_id, with one query_id for two queries, or with an id that
        holds white space (TREC).
    """
    if format not in JUDGEMENT_FORMATS:
        return
    missing = [number for number, row in enumerate(rows, start=1) if not row.item_id.strip()]
    if missing:
        raise ValueError(
            f"--format {format} needs the id of every product, but {_rows(missing)} no item_id: add that column (or "
            'name yours, --columns "docid=item_id"), or write --format jsonl'
        )
    if format == "trec":
        for name in ("query_id", "item_id"):
            spaced = [number for number, row in enumerate(rows, 1) if len(getattr(row, name).split()) > 1]
            if spaced:
                shown = shorten(repr(getattr(rows[spaced[0] - 1], name)))
                raise ValueError(
                    f"--format trec: a {name} holds white space, which separates the columns of a TREC file, "
                    f"in row {spaced[0]} ({shown}) and {len(spaced) - 1} more: write other ids, or --format quepid"
                )
    if format not in BY_QUERY_ID:
        return
    first: dict[str, Judgement] = {}
    for number, row in enumerate(rows, start=1):
        before = first.setdefault(row.query_id.strip(), row)
        if row.query_id.strip() and plain(before.query) != plain(row.query):
            texts = f"{shorten(repr(before.query))} and, in row {number}, {shorten(repr(row.query))}"
            raise ValueError(
                f"--format {format} knows queries by their id, but query_id {shorten(repr(row.query_id))} is {texts}: "
                "score files that were numbered apart one by one, or --format quepid"
            )
    if unnamed := sum(not row.query_id.strip() for row in rows):
        print(f"note: {unnamed} rows have no query_id: one is made from the query's text, q-HASH", file=sys.stderr)


def _rows(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"row {shown} has" if len(numbers) == 1 else f"{len(numbers)} rows ({shown}) have"


def rated(rows: Iterable[Judgement], scores: Iterable[Score], format: str) -> list[Rated]:
    """The pairs with ids, rating and score; of rows with equal query and product the first, saying how many."""
    found: dict[tuple[str, str], Rated] = {}
    repeated, rows = 0, list(rows)
    ids = {plain(row.query): row.query_id.strip() for row in reversed(rows) if row.query_id.strip()}
    for row, score in zip(rows, scores, strict=True):
        query, item = clean_text(row.query), row.item_id.strip()
        made = f"q-{hashlib.sha256(query.encode()).hexdigest()[:16]}"
        name = row.query_id.strip() or ids.get(plain(query), made)  # rows of the same text are the same query
        known_by = name if format in BY_QUERY_ID else query
        repeated += (known_by, item) in found
        found.setdefault((known_by, item), Rated(name, query, item, score.grade - 1, score.score))
    if repeated:
        print(f"note: {repeated} rows repeat a query and an item_id: the first of each is written", file=sys.stderr)
    return list(found.values())


def write_judged(out: str, format: str, pairs: Sequence[Rated], index: str, prompt_sha: str) -> None:
    """Write judgements, or a run where TREC's file is named .run. index: of Elasticsearch. prompt_sha: the rubric's."""
    if format == "trec":
        lines = run_lines(pairs, prompt_sha) if _suffix(out) == ".run" else qrels_lines(pairs)
    elif format == "quepid":
        lines = quepid_lines(pairs)
    else:
        name = RUN_TAG if out == STANDARD else Path(out).stem
        body = rank_eval(pairs, index) if format == "elasticsearch" else opensearch_judgments(pairs, name, prompt_sha)
        lines = iter([json.dumps(body, ensure_ascii=False, indent=1) + "\n"])
    with output_stream(out) as stream:
        for line in lines:
            stream.write(line.encode())


def qrels_lines(pairs: Iterable[Rated]) -> Iterator[str]:
    return (f"{pair.query_id} 0 {pair.item_id} {pair.rating}\n" for pair in pairs)


def run_lines(pairs: Iterable[Rated], prompt_sha: str) -> Iterator[str]:
    """Ranks from 1 by score within each query; of equal scores the row that comes first.

    trec_eval ignores the ranks, and breaks ties by the names of the items: so the scores of a query fall strictly, each
    by 0.000001 at least, even if the judge gave equal ones.
    """
    for query_id, group in _by(pairs, "query_id").items():
        ranked = sorted(group, key=lambda pair: -pair.score)  # stable
        millionths = 10**6 + 1
        for rank, pair in enumerate(ranked, start=1):
            millionths = min(round(pair.score * 10**6), millionths - 1)
            yield f"{query_id} Q0 {pair.item_id} {rank} {millionths / 10**6:.6f} {RUN_TAG}-{prompt_sha}\n"


def quepid_lines(pairs: Iterable[Rated]) -> Iterator[str]:
    """Cells exactly as they are: Quepid matches a query by its text."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("query", "docid", "rating"), *((p.query, p.item_id, p.rating) for p in pairs)])
    yield text.getvalue()


def rank_eval(pairs: Iterable[Rated], index: str) -> dict[str, Any]:
    """Each request is a plain match on `title`: put your own query there, the ratings stay."""
    requests = [
        {
            "id": query_id,
            "request": {"query": {"match": {"title": {"query": group[0].query}}}},
            "ratings": [{"_index": index, "_id": pair.item_id, "rating": pair.rating} for pair in group],
        }
        for query_id, group in _by(pairs, "query_id").items()
    ]
    return {"requests": requests, "metric": {"dcg": {"k": 10, "normalize": True}}}


def opensearch_judgments(pairs: Iterable[Rated], name: str, prompt_sha: str) -> dict[str, Any]:
    ratings = [
        {"query": query, "ratings": [{"docId": pair.item_id, "rating": f"{pair.rating:.3f}"} for pair in group]}
        for query, group in _by(pairs, "query").items()
    ]
    about = {"name": name, "description": f"grades of taosr1, less 1; prompt_sha {prompt_sha}"}
    return {**about, "type": "IMPORT_JUDGMENT", "judgmentRatings": ratings}


def _by(pairs: Iterable[Rated], name: str) -> dict[str, list[Rated]]:
    groups: dict[str, list[Rated]] = {}
    for pair in pairs:
        groups.setdefault(getattr(pair, name), []).append(pair)
    return groups
