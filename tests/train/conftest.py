"""Small judges that the training scripts start from, and what it means that two runs are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taosr1.learning import loop
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import train_tokenizer
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig
from train.mine_pairs import main as mine
from train.sft import main as sft

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 24,
}
CHECKPOINT = {"config.json", "generation_config.json", "manifest.json", "model.safetensors", "optimizer.safetensors",
              "prompt.json", "state.json", "tokenizer.json", "tokenizer_config.json"}  # fmt: skip


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> str:
    """A folder with fresh weights: it can be asked, but answers nonsense."""
    folder = tmp_path_factory.mktemp("base")
    rows = read_pool("reasoned", 200)
    texts = [f" {row.query}\n {row.title} {row.price}" for row in rows] + [f"{row.grade}\n{row.cot}" for row in rows]
    tokenizer = train_tokenizer(texts, 600, tmp_path_factory.mktemp("tokenizer"))
    model = Decoder(DecoderConfig(tokenizer.vocab_size, **SHAPE, max_position_embeddings=256)).init_weights(
        torch.Generator().manual_seed(0)
    )
    save_pretrained(model, tokenizer, folder)
    PromptConfig("post-cot", "brief", ("title",)).save(folder)
    return str(folder)


def _trained(base: str, order: str, folder: Path) -> str:
    """A run just long enough that replies have their form, and are right or wrong by turns."""
    sft(["--model", base, "--order", order, "--data", "synthetic:reasoned*300", "--dev", "synthetic:dev*8",
         "--steps", "100", "--batch-size", "16", "--optimizer", "muon", "--lr", "0.01",
         "--out", str(folder / order)])  # fmt: skip
    return str(folder / order)


@pytest.fixture(scope="session")
def post(base, tmp_path_factory) -> str:
    """A judge that answers, then explains."""
    return _trained(base, "post-cot", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def thinker(base, tmp_path_factory) -> str:
    """A judge that reasons, then answers."""
    return _trained(base, "pre-cot", tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def pairs(post, tmp_path_factory) -> str:
    """Preference pairs of `post`."""
    path = str(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    mine(["--model", post, "--data", "synthetic:reasoned*40,synthetic:labelled*40", "--prompts", "60",
          "--samples", "4", "--max-new-tokens", "64", "--balance", "none", "--out", path])  # fmt: skip
    return path


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """refused(main, *argv): the message with which a script ends before it does anything."""

    def run(main, *argv: str) -> str:
        with pytest.raises((SystemExit, ValueError, FileNotFoundError, FileExistsError)) as caught:
            main([str(word) for word in argv])
        assert not isinstance(caught.value, SystemExit) or caught.value.code == 2
        return capsys.readouterr().err + str(caught.value)

    return run


@pytest.fixture
def stopped_after(monkeypatch) -> Callable[..., None]:
    """stopped_after(saves, main, argv): run a script that is interrupted right after its n-th checkpoint."""

    def run(saves: int, main, argv: list[str]) -> None:
        done, save = [], loop.save_checkpoint

        def save_and_stop(*arguments, **given):
            save(*arguments, **given)
            done.append(arguments)
            if len(done) == saves:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                main(argv)

    return run


def files(folder: str | Path) -> set[str]:
    return {
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"
    }


def json_lines(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def metrics(folder: str | Path) -> list[dict]:
    """metrics.jsonl without what a clock says."""
    return [
        {name: value for name, value in row.items() if name != "time_s"}
        for row in json_lines(Path(folder) / "metrics.jsonl")
    ]


@pytest.fixture(scope="session")
def look():
    """files, json_lines and metrics of a run, the files of a checkpoint; `same`: two runs are equal byte for byte."""

    class Look:
        checkpoint = CHECKPOINT

        @staticmethod
        def same(one: str | Path, other: str | Path) -> None:
            assert files(one) == files(other)
            assert metrics(one) == metrics(other)
            for name in files(one) - {"config.json", "env.json", "metrics.jsonl"}:
                assert (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes(), name

    Look.files, Look.json_lines, Look.metrics = staticmethod(files), staticmethod(json_lines), staticmethod(metrics)
    return Look
