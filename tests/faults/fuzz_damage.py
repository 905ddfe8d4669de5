"""Damages the valid files of fuzz_files.py, for tests/faults/fuzz.py. `make(seed, n)` is file n, always the same.

An operator changes the file at its stage: its rows, its lines, its bytes, or its bytes once gzipped.
"""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Callable

from fuzz_files import KINDS, MAKERS, VOCAB, Sample, other_names, without_quoting
from fuzz_oracle import unpacked

ROW, LINE, BYTES, PACKED = "rows", "lines", "bytes", "packed"
OPERATORS: dict[str, tuple[str, Callable[[random.Random, Sample], None]]] = {}


def operator(stage: str):
    def register(function):
        OPERATORS[function.__name__.replace("_", " ")] = (stage, function)
        return function

    return register


TYPED = (
    "grade", "query_id", "attributes", "price", "esci_label", "product_bullet_point", "product_id", "probs", "tier",
    "label_mass", "gold_grade", "prompt_ids", "chosen_ids", "id", "custom_id", "response", "reply",
)  # fmt: skip


def deep(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@operator(ROW)
def another_type(rng, sample):
    row = rng.choice(sample.rows)
    if row:
        typed = [name for name in TYPED if name in row]
        value = rng.choice([
            None, True, False, 0, 5, -3, 2.5, 1e300, 12345678901234567890, 12345678901234567890.0, 10**400, "", " ",
            "x", "\uff14", "5", "4.5", "NaN", [], [1, "2"], {}, {"a": {"b": 1}}, [None] * 4, [{}] * 4,
            ["0", "0", "0", "1"], [10**400, 0, 0, 0], [1e999, 0, 0, 0], [math.nan] * 4, "Infinity", "4-Related",
            deep(30), deep(400),
        ])  # fmt: skip
        row[rng.choice(typed if typed and rng.random() < 0.7 else list(row))] = value


@operator(ROW)
def an_odd_list(rng, sample):
    row = rng.choice(sample.rows)
    for name in [name for name, value in row.items() if isinstance(value, list)]:
        odd = rng.choice([None, True, "1", "x", {}, [1], 10**400, -1, -0.0, 1e308, math.nan, VOCAB, 0.5])
        value = row[name]
        row[name] = rng.choice([[odd] * len(value), [odd, *value[1:]], value[1:], [*value, odd], [value]])


@operator(ROW)
def a_field_less(rng, sample):
    row = rng.choice(sample.rows)
    if row:
        row.pop(rng.choice(list(row)))


@operator(ROW)
def a_field_renamed(rng, sample):
    row = rng.choice(sample.rows)
    if row:
        name = rng.choice(list(row))
        form = rng.choice(["upper", "capital", " {}", "{} ", "\ufeff{}", "{}\0", "{}x"])
        changed = {"upper": name.upper(), "capital": name.capitalize()}.get(form, form.format(name))
        row[changed] = row.pop(name)


@operator(ROW)
def ids_of_another_row(rng, sample):
    one, other = rng.choice(sample.rows), rng.choice(sample.rows)
    one |= {name: other[name] for name in ("query_id", "item_id", "product_id", "id", "custom_id") if name in other}


@operator(ROW)
def a_pair_graded_twice(rng, sample):
    row = dict(rng.choice(sample.rows))
    for name, values in (("grade", (1, 2, 3, 4, None)), ("esci_label", "ESCI"), ("gold_grade", (1, 4))):
        if name in row:
            row[name] = rng.choice(values)
    sample.rows.insert(rng.randrange(len(sample.rows) + 1), row)


@operator(ROW)
def a_row_repeated(rng, sample):
    sample.rows.append(dict(rng.choice(sample.rows)))


@operator(ROW)
def odd_characters(rng, sample):
    row = rng.choice(sample.rows)
    if row:
        odd = rng.choice(["\0", "\ud800", "\udfff\ud800", "\x1b[31m", "\x7f", "\ufffe", "\udc00"])
        row[rng.choice(list(row))] = f"x{odd}y"


@operator(ROW)
def a_huge_field(rng, sample):
    row = rng.choice(sample.rows)
    if row:
        value = rng.choice(["x", "靴 ", " ", '"', "a\n", "&", "<a"]) * rng.choice([10_000, 200_000, 500_000])
        row[rng.choice(list(row))] = value


@operator(LINE)
def a_line_less(rng, sample):
    sample.lines.pop(rng.randrange(len(sample.lines)))


@operator(LINE)
def a_line_twice(rng, sample):
    sample.lines.insert(rng.randrange(len(sample.lines) + 1), rng.choice(sample.lines))


@operator(LINE)
def lines_swapped(rng, sample):
    one, other = rng.randrange(len(sample.lines)), rng.randrange(len(sample.lines))
    sample.lines[one], sample.lines[other] = sample.lines[other], sample.lines[one]


@operator(LINE)
def a_torn_line(rng, sample):
    place = rng.randrange(len(sample.lines))
    cut = rng.randrange(len(sample.lines[place]))
    sample.lines[place] = sample.lines[place][:cut] + rng.choice([b"", b"\n"])


@operator(LINE)
def blank_lines(rng, sample):
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(sample.lines) + 1)
        sample.lines.insert(place, rng.choice([b"\n", b"  \n", b"\r\n", b"\t\n", b'""\n', b",\n"]))


@operator(LINE)
def a_line_break_less(rng, sample):
    place = rng.randrange(len(sample.lines))
    sample.lines[place] = sample.lines[place].rstrip(b"\n")


@operator(LINE)
def no_final_newline(rng, sample):
    sample.lines[-1] = sample.lines[-1].rstrip(b"\n")


def with_line_ends(end: bytes, share: float, rng: random.Random, lines: list[bytes]) -> list[bytes]:
    return [line[:-1] + end if line.endswith(b"\n") and rng.random() < share else line for line in lines]


@operator(LINE)
def lines_of_windows(rng, sample):
    share = rng.choice([0.5, 1])
    sample.lines = with_line_ends(b"\r\n", share, rng, sample.lines)


@operator(LINE)
def lines_of_an_old_mac(rng, sample):
    share = rng.choice([0.3, 1])
    sample.lines = with_line_ends(b"\r", share, rng, sample.lines)


@operator(LINE)
def another_file_behind(rng, sample):
    sample.lines += [rng.choice([b"", b"\xef\xbb\xbf"]) + sample.lines[0], *sample.lines[1:]]


@operator(LINE)
def foreign_json(rng, sample):
    row = b'{"query": "q", "title": "t"'
    spelled = [b"null", b"[]", b"3", b"{}", b'"text"', b"[" * 100_000, b'{"a":' * 2000, b"NaN"]
    spelled += [b'{"query": NaN, "title": 1}', b'{"query": "q", "query": "q", "title": "t"}', row + b', "n": 1e999}']
    spelled += [row + b', "n": ' + b"9" * 5000 + b"}", row + b', "n": 007}', b"{'query': 'q'}", row + b"} # note"]
    spelled += [row + b"}" + row + b"}", b'{"k\\ud800": 1, "k\\udfff": 2, ' + row[1:] + b"}"]
    sample.lines.insert(rng.randrange(len(sample.lines) + 1), rng.choice(spelled) + b"\n")


@operator(LINE)
def quotes_moved(rng, sample):
    place = rng.randrange(len(sample.lines))
    line = sample.lines[place]
    at = rng.randrange(len(line))
    moved = [line.replace(b'"', b"", 1), line[:at] + b'"' + line[at:]]
    sample.lines[place] = rng.choice([*moved, line.replace(b",", b',"', 1), line.replace(b'"', b"'")])


@operator(LINE)
def the_header_edited(rng, sample):
    line = sample.lines[0]
    names = line.rstrip(b"\n").split(sample.delimiter.encode())
    place = rng.randrange(len(names))
    change = rng.choice(["twice", "less", "empty", "spaced", "upper", "other delimiter", "swap"])
    if change == "twice":
        names.append(names[place])
    elif change == "less":
        names.pop(place)
    elif change == "empty":
        names[place] = b""
    elif change == "spaced":
        names[place] = b" " + names[place] + b" "
    elif change == "upper":
        names[place] = names[place].upper()
    elif change == "swap":
        rng.shuffle(names)
    other = b"," if sample.delimiter == ";" else b";"
    sample.lines[0] = (other if change == "other delimiter" else sample.delimiter.encode()).join(names) + b"\n"


@operator(LINE)
def the_hint_of_Excel(rng, sample):
    sample.lines.insert(0, b"sep=" + rng.choice([sample.delimiter.encode()] * 4 + [b"x", b""]) + b"\n")


@operator(BYTES)
def flipped_bits(rng, sample):
    data = bytearray(sample.data)
    for _ in range(rng.choice([1, 1, 2, 5, 30])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    sample.data = bytes(data)


@operator(BYTES)
def cut_off(rng, sample):
    sample.data = sample.data[: rng.randrange(len(sample.data) + 1)]


@operator(BYTES)
def a_piece_missing(rng, sample):
    start = rng.randrange(len(sample.data) + 1)
    sample.data = sample.data[:start] + sample.data[start + rng.randint(1, 200) :]


@operator(BYTES)
def bytes_put_in(rng, sample):
    odd = [b"\0", b"\0" * 50, b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"\xed\xa0\x80", b"\xff", b"\xc0\x80"]
    odd += [b"\\", b"\\u0000", b"\\ud800", b",", b"\x1a"]
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(len(sample.data) + 1)
        strange = rng.choice([*odd, bytes([rng.randrange(256)])])
        sample.data = sample.data[:at] + strange + sample.data[at:]


@operator(BYTES)
def a_mark_in_front(rng, sample):
    sample.data = rng.choice([b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2, b"\n", b"\0", b"\xff\xfe"]) + sample.data


@operator(BYTES)
def another_encoding(rng, sample):
    encoding = rng.choice(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "cp1252"])
    sample.data = sample.data.decode("utf-8", "replace").encode(encoding, "replace")


@operator(BYTES)
def rubbish_behind(rng, sample):
    sample.data += rng.choice([rng.randbytes(40), b"\0" * 512, b"}\n", b"\x1f\x8b", b"<html>\n"])


@operator(PACKED)
def gzip_cut_off(rng, sample):
    sample.data = sample.data[: rng.randrange(len(sample.data) + 1)]


@operator(PACKED)
def gzip_bits_flipped(rng, sample):
    flipped_bits(rng, sample)


@operator(PACKED)
def gzip_checksum_wrong(rng, sample):
    sample.data = sample.data[:-8] + rng.randbytes(8)


@operator(PACKED)
def gzip_with_more_behind(rng, sample):
    members = [gzip.compress(data, mtime=0) for data in (b"", b"\n")]
    sample.data += rng.choice([b"rubbish", b"\0" * 100, *members, sample.data, sample.data[:20]])


# --- one file ---------------------------------------------------------------------------------------------------------


def make(seed: int, number: int) -> tuple[Sample, list[str], set[int]]:
    """File `number` of a seed: the damaged sample, its operators, and the lines of certainly undamaged rows."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choice(KINDS)
    form = rng.choice(["jsonl", "jsonl", "csv", "csv", "tsv", "txt", "json"]) if kind in ("ours", "esci") else "jsonl"
    sample = Sample(kind, form, rng.random() < 0.3, [MAKERS[kind](rng, n) for n in range(rng.randint(1, 8))])
    sample.delimiter = {"csv": rng.choice(",,;|\t"), "txt": rng.choice("\t\t;|")}.get(form, "\t")
    sample.unquoted = form in ("csv", "tsv", "txt") and rng.random() < 0.25
    sample.rows = other_names(rng, sample.rows) if kind == "ours" and rng.random() < 0.25 else sample.rows
    names = rng.sample(list(OPERATORS), rng.choice([0, 1, 1, 1, 1, 2, 2, 3]))
    sample.damaged = bool(names := [name for name in names if applies(name, sample)])
    chosen = {stage: [name for name in names if OPERATORS[name][0] == stage] for stage in (ROW, LINE, BYTES, PACKED)}
    apply(chosen[ROW], rng, sample)
    if sample.unquoted:
        sample.rows = without_quoting(rng, sample.rows)
    sample.serialise(rng)
    untouched = set(sample.lines[sample.format != "jsonl" :]) if not chosen[ROW] else set()
    header = sample.lines[0]
    apply(chosen[LINE], rng, sample)
    sample.data = b"".join(sample.lines)
    apply(chosen[BYTES], rng, sample)
    if sample.gz:
        sample.data = gzip.compress(sample.data, mtime=0)
        apply(chosen[PACKED], rng, sample)
    plain = unpacked(sample.data)[0] if sample.gz else sample.data
    # A row is certainly good if its line is one of the original ones; in CSV only if neither lines nor bytes changed.
    if sample.format == "jsonl":
        lines = plain.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        original = {number for number, line in enumerate(lines, start=1) if line + b"\n" in untouched}
    elif sample.format == "json" or sample.unquoted:
        original = set()  # fuzz_checks.py looks at undamaged ones
    else:
        original = set()
        if not chosen[LINE] and not chosen[BYTES] and not chosen[PACKED]:
            line = 1 + header.count(b"\n")
            for record in sample.lines[1:]:
                original |= {line} if record in untouched else set()
                line += record.count(b"\n")
    return sample, names, original


def applies(name: str, sample: Sample) -> bool:
    if OPERATORS[name][0] == PACKED:
        return sample.gz
    if name in ("the header edited", "the hint of Excel"):
        return sample.format not in ("jsonl", "json")
    if name == "an odd list":
        return sample.kind in ("pairs", "scores")
    return name != "foreign json" or sample.format == "jsonl"


def apply(names: list[str], rng: random.Random, sample: Sample) -> None:
    for name in names:
        stage, function = OPERATORS[name]
        if stage == BYTES or stage == PACKED or (sample.rows and stage == ROW) or (sample.lines and stage == LINE):
            function(rng, sample)
