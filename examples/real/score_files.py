"""Files of scores as infer/score.py writes them: the rivals write them too, and the study reads nothing else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.real.measures import Scored
from taosr1.data.predictions import without_prediction
from taosr1.data.queries import query_keys
from taosr1.evaluation.scores import read_scores
from taosr1.runtime.files import write_json
from taosr1.runtime.jsonl import write_jsonl
from taosr1.serving.rows import predicted_row
from taosr1.serving.scorer import Score
from taosr1.serving.tiering import cumulative_tier
from taosr1.task.judgement import Judgement


def write_scores(
    path: str, pairs: Sequence[tuple[dict, Judgement]], probs: np.ndarray, by: str, seconds: float
) -> None:
    """The rows with P(grade 1..4), (N, 4), and in PATH.cost.json what a pair cost. by: stands as their prompt_sha."""
    tiers = cumulative_tier(probs, 0.5)
    scores = [Score(int(p.argmax()) + 1, tier, tuple(p.tolist()), 1.0) for p, tier in zip(probs, tiers)]
    rows = (
        predicted_row(without_prediction(raw)[0], row, score, by, flat=False)
        for (raw, row), score in zip(pairs, scores, strict=True)
    )
    write_json(Path(f"{path}.cost.json"), {"ms_a_pair": 1000 * seconds / len(pairs)})
    write_jsonl(path, rows)


def scored(path: str | Path) -> Scored:
    """What a file of scores says; notes on its columns are not shown. Raises: ValueError as `read_scores`."""
    with contextlib.redirect_stderr(io.StringIO()):
        rows, predictions = zip(*read_scores(path))
    return Scored(
        gold=np.array([row.grade for row in rows]),
        probs=np.array([prediction.probs for prediction in predictions]),
        names=np.array(query_keys(rows)),
        kinds=np.array([row.query_kind for row in rows]),
    )
