"""Run folders and score files for the tests of the report, small and written by hand."""

from __future__ import annotations

import json
from pathlib import Path

HOSTILE = [
    "</script><script>window.hacked = 1</script> lamp",
    "<!-- <script> lamp",
    "<img src='http://127.0.0.1:1/x.png' onerror='window.hacked = 2'> lamp",
    '"><svg onload="window.hacked = 3"> lamp',
    "line\u2028separator \u202e right to left",
]
GROUP = {
    "row": 0, "query": HOSTILE[0], "title": HOSTILE[1], "gold": 4, "right": 2, "kept": True, "dropped": "",
    "probs": [0, 0.3333, 0, 0.6667], "labels": [4, 4, 2], "rewards": [1.0, 1.0, 0.0],
    "reward_parts": [{"label": 1.0}, {"label": 1.0}, {"label": 0.0}], "advantages": [0.5774, 0.5774, -1.1547],
    "replies": [HOSTILE[2], HOSTILE[2], HOSTILE[3]],
}  # fmt: skip
DROPPED = {
    **GROUP, "query": "mug", "right": 3, "kept": False, "dropped": "all right", "labels": [4, 4, 4],
    "rewards": [1.0] * 3, "reward_parts": [{"label": 1.0}] * 3, "advantages": [], "replies": ["same"] * 3,
}  # fmt: skip


def write_lines(path: Path, rows: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_run(folder: Path, losses: list[float], groups: list[dict] = (), **config) -> str:
    """A run folder with a loss and a time a step, dev scores at the last, and groups."""
    lines = [{"step": step, "loss": loss, "time_s": 2.0, "decoded_tok": 100} for step, loss in enumerate(losses, 1)]
    write_lines(folder / "metrics.jsonl", [*lines, {"step": len(losses), "dev_macro_f1": 0.5 + losses[-1] / 10}])
    (folder / "config.json").write_text(json.dumps({"seed": 0, "out": str(folder), **config}))
    if groups:
        write_lines(folder / "samples.jsonl", groups)
    return str(folder)


def scored_rows(rows: int = 40, wrong: int = 5, **changes) -> list[dict]:
    """Rows as infer/score.py writes them, every `wrong`-th of them wrong; CumPT's tiers with a beta of 0.5."""
    written = []
    for row in range(rows):
        gold = row % 4 + 1
        given = gold % 4 + 1 if row % wrong == 0 else gold
        probs = [0.7 if grade == given else 0.1 for grade in (1, 2, 3, 4)]
        tier = "Good" if given > 2 else "Mid" if given == 2 else "Bad"
        written.append({
            "query": f"query {row // 2}", "query_id": f"q{row // 2}", "item_id": f"i{row}", "title": f"title {row}",
            "grade": gold, "query_kind": "negation" if row % 4 < 2 else "plain", "pred_grade": given, "tier": tier,
            "probs": probs, "label_mass": 0.9, "score": 0.5, "outside": "", "prompt_sha": "x", **changes,
        })  # fmt: skip
    return written
