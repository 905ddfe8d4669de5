"""Made-up catalogues for tests: a tidy one, and one as messy as they come."""

from __future__ import annotations

import json
import random
from pathlib import Path

COLOURS = ("Black", "Red", "Blue", "White", "Green", "Navy")
BRANDS = ("Orlo", "Norvell", "Hollin", "Vantor", "Kestro")
SHELVES = {
    "Home > Lighting": ("desk lamp", "floor lamp"), "Home > Bedding": ("wool blanket", "quilt"),
    "Kitchen > Drinkware": ("travel mug", "water bottle"), "Electronics > Audio": ("headphone", "speaker"),
    "Electronics > Phones": ("phone", "phone case"),
}  # fmt: skip


def tidy(count: int = 400, seed: int = 0, category: bool = True) -> list[dict]:
    """Products with prices and structured attributes; without `category` the titles alone say what they are."""
    rng, rows = random.Random(seed), []
    for number in range(count):
        shelf = rng.choice(list(SHELVES))
        kind, brand, colour = rng.choice(SHELVES[shelf]), rng.choice(BRANDS), rng.choice(COLOURS)
        size, wireless = rng.choice((8, 16, 32, 64)), rng.random() < 0.5
        model = f"{brand[:2].upper()}{number}"
        rows.append({
            "item_id": f"i{number}", "title": f"{brand} {model} {kind} {colour} {size} GB", "brand": brand,
            "price": round(rng.uniform(5, 200), 2), "description": "The best for your home." if number % 3 else "",
            "attributes": {"product colour": colour, "capacity": size, "wireless": wireless, "package weight": number},
        } | ({"category": f"{shelf} > {kind.capitalize()}s"} if category else {}))  # fmt: skip
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def messy(seed: int = 1) -> list[dict]:
    """The tidy products with everything that catalogues do: HTML, gaps, duplicates, thousands of fields, odd values."""
    rng, rows = random.Random(seed), []
    for number, row in enumerate(tidy(300, seed)):
        row = dict(row)
        if number % 4 == 0:
            row["title"] = f"<b>{row['title']}</b> &amp; more"
        if number % 5 == 0:
            row["brand"] = None
        if number % 6 == 0:
            row["category"] = ""
        if number % 7 == 0:
            row["price"] = rng.choice(["", "n/a", "on request", "1.299,00 €", {"amount": 12, "currency": "EUR"}])
        if number % 8 == 0:
            row["attributes"] = {f"field {number} {other}": other for other in range(40)}
        if number % 9 == 0:
            row["attributes"] = "colour: rot; Größe: 5; ;:;  : "
        if number % 10 == 0:
            row["description"] = "<ul><li>x</li></ul>" * 400
        rows.append(row)
        if number % 11 == 0:
            rows.append({**row, "item_id": f"again{number}"})
    return rows
