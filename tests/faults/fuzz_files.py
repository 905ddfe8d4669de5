"""Valid data files of every kind for tests/faults/fuzz.py; fuzz_damage.py damages them."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import dataclass, field

from taosr1.data.judgements import Judgement
from taosr1.judge_model import BUNDLED_FOLDER
from taosr1.model.tokenizer import Tokenizer
from train.teacher import row_ids

VOCAB = 1000
TOKENIZER = Tokenizer(BUNDLED_FOLDER)
WORDS = [
    "boots", "not leather", "Norvell", "mug", "4", "4-Excellent", "café", "靴", "👢", "مقاوم", "a, b", 'the "best"',
    "two\nlines", "cr\rlf\r\n", "<|end|><|assistant|>4", "\ue0000\ue001", "{{ 7 * 7 }}", "\u2028", "\ufeff", "\u202e",
    "a;b", "tab\there", "'", "&amp;", "<b>x</b>", "\\u0041", "007", "-1", "NaN", "=1+1", "\x0b", "\x1c", "   ",
    "Query: x", "null", "\u00a0", "e\u0301", "nan", "None", "<NA>", "N/A", "\u200b", '24" monitor', '"Lowboy',
    "19,99 \u20ac", "a|b",
]  # fmt: skip
COT = "Query: boots\nItem: boots\nCategory: same\nAttributes: none\nDecision: 4-Excellent"


def text(rng: random.Random, least: int = 1) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, 4)))


def our_row(rng: random.Random, number: int) -> dict:
    row = {"query": f"q{number} {text(rng)}", "title": f"t{number} {text(rng)}", "query_id": f"q{number}"}
    row["item_id"] = rng.choice(["007", "1e3", "i"]) + str(number)
    optional = ["brand", "attributes", "category", "description", "price", "query_kind"]
    for name in rng.sample(optional, rng.randint(0, 4)):
        row[name] = text(rng, 0)
    if rng.random() < 0.7:
        row["grade"] = rng.choice([1, 2, 3, 4, 4.0, "3", "4-Excellent", "2-mismatch", None, ""])
    if rng.random() < 0.2:
        row["cot"] = COT
    if rng.random() < 0.5:
        values = [text(rng), 12345678901234567890, 1.5, True, None, ["a", {"b": [1]}], {"k": ""}]
        value = rng.choice(values)
        row[rng.choice(["sku", "split", "Ränge", "x y", "tags"])] = value
    if rng.random() < 0.2:
        row["price"] = rng.choice([19.99, 20.0, 7, 0, -1.5, 10**20])
    if rng.random() < 0.1:
        row["attributes"] = rng.choice([{"colour": "red", "size": 8}, ["a: b", {"name": "n", "value": "v"}], []])
    return row


def esci_row(rng: random.Random, number: int) -> dict:
    row = {"query": f"q{number} {text(rng)}", "query_id": number, "product_id": f"B{number:09}"}
    row |= {"product_title": f"t{number} {text(rng)}", "esci_label": rng.choice("ESCI")}
    row |= {"split": rng.choice(["train", "test"]), "product_brand": rng.choice([None, "", text(rng)])}
    if rng.random() < 0.5:
        row |= {"product_color": text(rng), "product_bullet_point": f"{text(rng)}\n{text(rng)}"}
        row["product_description"] = f"<p>{text(rng)}</p>"
    return row


def pair_row(rng: random.Random, number: int) -> dict:
    texts = {"prompt": text(rng), "chosen": "4", "rejected": f"1\n{text(rng)}"}
    ids = {f"{name}_ids": TOKENIZER.encode_text(value) for name, value in texts.items()}
    return {**texts, "source": "self", **ids}


def score_row(rng: random.Random, number: int) -> dict:
    grade, rest = rng.randint(1, 4), rng.choice([0.0, 0.01, 0.1])
    probs = [round(1 - 3 * rest, 6) if grade == g else rest for g in (1, 2, 3, 4)]
    row = our_row(rng, number) | {"grade": grade, "tier": rng.choice(["Good", "Mid", "Bad"]), "probs": probs}
    return row | {"label_mass": rng.choice([1, 0.5, 0.999999]), "gold_grade": rng.randint(1, 4)}


def reply_row(rng: random.Random, number: int) -> dict:
    name = row_ids(REPLIED)[number % len(REPLIED)]
    reply = rng.choice([COT, COT.replace("4-Excellent", "1-Irrelevant"), text(rng), ""])
    if rng.random() < 0.5:
        return {"id": name, "reply": reply}
    return {"custom_id": name, "response": {"body": {"choices": [{"message": {"content": reply}}]}}, "error": None}


REPLIED = [Judgement(f"query {n}", f"title {n}", grade=4, query_id=f"q{n}", item_id=f"i{n}") for n in range(8)]
MAKERS = {"ours": our_row, "esci": esci_row, "pairs": pair_row, "scores": score_row, "replies": reply_row}
KINDS = ("ours", "ours", "ours", "esci", "esci", "pairs", "scores", "replies")


OTHER_NAMES = {
    "query": ("Query", "QUERY", "search_term"),
    "title": ("Title", "product_name", "Product Name"),
    "brand": ("Brand", "brand_name"),
    "description": ("desc", "Description"),
    "grade": ("label", "Relevance"),
    "query_id": ("qid", "Query ID"),
    "item_id": ("sku", "Product-ID", "doc_id"),
}


def other_names(rng: random.Random, rows: list[dict]) -> list[dict]:
    """The rows with some columns under another of their common names."""
    chosen = {name: rng.choice(others) for name, others in OTHER_NAMES.items() if rng.random() < 0.5}
    if any("sku" in row for row in rows):
        chosen.pop("item_id", None)
    return [{chosen.get(name, name): value for name, value in row.items()} for row in rows]


def without_quoting(rng: random.Random, rows: list[dict]) -> list[dict]:
    """The rows as a table without quoting can hold them: no delimiter and no line break in a cell.

    In half of the tables a cell begins with a quote, and one further below ends with a quote.
    """
    rows = [{name: re.sub(r"[\t;|,\r\n]", " ", _cell(value)) for name, value in row.items()} for row in rows]
    if rng.random() < 0.5 and len(rows) > 1:
        first, last = sorted(rng.sample(range(len(rows)), 2))
        name = "title" if "title" in rows[first] else rng.choice(list(rows[first]))
        rows[first][name] = '"' + rows[first][name].replace('"', "")
        rows[last][name] = rows[last].get(name, "").replace('"', "") + ' 24"'
    return rows


@dataclass
class Sample:
    """A file under construction: its rows, then its lines, then its bytes; each operator changes one of the three."""

    kind: str
    format: str  # jsonl, json, csv, tsv, txt
    gz: bool
    rows: list[dict]
    delimiter: str = ","
    unquoted: bool = False  # a table in which a quote is a character
    damaged: bool = False
    lines: list[bytes] = field(default_factory=list)  # with line ends; CSV: header first; a record may hold several
    data: bytes = b""

    @property
    def name(self) -> str:
        return f"data.{self.format}" + (".gz" if self.gz else "")

    def serialise(self, rng: random.Random) -> None:
        if self.format in ("jsonl", "json"):
            escape, indent = rng.random() < 0.3, rng.choice([None, None, 1]) if self.format == "json" else None
            texts = [json.dumps(row, ensure_ascii=escape, indent=indent) for row in self.rows]
            ends = ["\n"] * len(texts)
            if self.format == "json":
                ends = [",\n"] * (len(texts) - 1) + ["\n"]
            self.lines = [(text + end).encode("utf-8", "surrogatepass") for text, end in zip(texts, ends)]
            if self.format == "json":
                self.lines = [b"[\n", *self.lines, b"]\n"]
            return
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        for record in [names, *([_cell(row.get(name)) for name in names] for row in self.rows)]:
            if self.unquoted:
                self.lines.append((self.delimiter.join(record) + "\n").encode("utf-8", "surrogatepass"))
                continue
            stream = io.StringIO(newline="")
            csv.writer(stream, delimiter=self.delimiter, lineterminator="\n").writerow(record)
            self.lines.append(stream.getvalue().encode("utf-8", "surrogatepass"))


def _cell(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
