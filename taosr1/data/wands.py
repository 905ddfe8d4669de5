"""WANDS as Wayfair ships it: label.csv, query.csv and product.csv in one folder, joined by their ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from taosr1.data.csv_rows import read_csv
from taosr1.data.flags import AS_FOUND, ReadFlags
from taosr1.runtime.bad_rows import BadRows

FILES = ("label.csv", "query.csv", "product.csv")


def is_wands(folder: Path) -> bool:
    """Whether a folder holds the three files."""
    return all((folder / name).is_file() for name in FILES)


def read_wands(
    folder: Path, bad_rows: BadRows | None = None, read: ReadFlags = AS_FOUND
) -> Iterator[tuple[int, dict]]:
    """The rows of label.csv, each with its query and product, under the line numbers of label.csv.

    Raises: ValueError as `read_csv`; for a label whose query or product is missing (`bad_rows` may skip it).
    """
    labels, queries, products = (folder / name for name in FILES)
    bad_rows = bad_rows or BadRows(labels)
    bad_rows.path = labels
    tables = []
    for path, key in ((queries, "query_id"), (products, "product_id")):
        rows = {row.get(key): row for _, row in read_csv(path, BadRows(path, bad_rows.allowed), read, usual="\t")}
        tables.append((path, key, rows))
    for line, label in read_csv(labels, bad_rows, read, usual="\t"):
        row = label
        for path, key, rows in tables:
            if label.get(key) not in rows:
                bad_rows.add(line, f"unknown {key}: {label.get(key)!r} is not in {path.name}")
                break
            row = {**rows[label[key]], **row}
        else:
            yield line, row
