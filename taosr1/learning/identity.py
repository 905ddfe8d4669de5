"""The identity of a training run: what decides its numbers beside its settings, as short texts to compare on resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from taosr1.judge import Judge
from taosr1.model.io.folders import weights_fingerprint
from taosr1.runtime.distributed import this_rank
from taosr1.task.grades import LABELS


def identity(judge: Judge, **rows: Sequence) -> dict[str, str]:
    """Starting weights, tokenizer, label tokens, wording of the prompt, number of ranks, and the data by name."""
    return {
        "start": weights_fingerprint(judge.model.source),
        "tokenizer": f"sha256 {judge.tokenizer.fingerprint()}",
        "label_map": ", ".join(f"{label}: {token}" for label, token in zip(LABELS, judge.tokenizer.label_ids)),
        "prompt_wording": f"sha256 {judge.prompt.wording_sha256}",
        "world_size": str(this_rank().world),
        **{name: f"{len(found)} rows, sha256 {_digest(found)}" for name, found in rows.items()},
    }


def _digest(rows: Sequence) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(row).encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]
