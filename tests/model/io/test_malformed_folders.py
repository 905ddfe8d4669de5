"""Every damage of a model folder is one clear error that names the file, and nothing is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch

from taosr1.model.io.weights import load_pretrained, load_weights, save_pretrained
from taosr1.runtime.files import DamagedError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
OUTSIDE = "no .safetensors file of its own folder"
NOT_JSON = r"config\.json is not valid JSON"


def config(**changes):
    return lambda folder: edit(folder / "config.json", lambda value: value.update(changes))


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def single(change):
    """Damage the tensors of an unsharded folder."""

    def damage(folder: Path) -> None:
        tensors = {}
        for path in folder.glob("*.safetensors"):
            tensors |= safetensors.torch.load(path.read_bytes())
            path.unlink()
        (folder / INDEX).unlink()
        change(tensors)
        safetensors.torch.save_file(tensors, folder / SINGLE)

    return damage


def index(change):
    return lambda folder: edit(folder / INDEX, lambda value: change(value["weight_map"]))


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def raw(name: str, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def header(text: bytes, size: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if size is None else size) + text


OVERLAPPING = {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}


def swap(folder: Path) -> None:
    for old, new in ((FIRST, "x"), (SECOND, FIRST), ("x", SECOND)):
        (folder / old).rename(folder / new)


def replace_second(make):
    """Put something other than a file in place of the second shard."""

    def damage(folder: Path) -> None:
        (folder / SECOND).unlink()
        make(folder / SECOND)

    return damage


DAMAGES = {
    "config.json is missing": (remove("config.json"), "it has no config.json"),
    "config.json is empty": (raw("config.json", lambda data: b""), NOT_JSON),
    "config.json is cut": (raw("config.json", lambda data: data[: len(data) // 2]), NOT_JSON),
    "config.json is a list": (raw("config.json", lambda data: b"[1]"), "holds a JSON list, expected an object"),
    "config.json is not UTF-8": (raw("config.json", lambda data: b"\xff\xfe" + data), NOT_JSON),
    "config.json nests too deep": (raw("config.json", lambda data: b'{"a":' * 100_000), NOT_JSON),
    "a size is NaN": (config(hidden_size=float("nan")), "hidden_size is nan"),
    "a float is NaN": (config(rope_theta=float("nan"), rope_parameters=None), "rope_theta is nan"),
    "a size is negative": (config(num_attention_heads=-4), "num_attention_heads is -4"),
    "a size is a string": (config(intermediate_size="40"), "intermediate_size is '40'"),
    "a size is enormous": (config(num_hidden_layers=10**12), "num_hidden_layers is 1000000000000"),
    "another architecture": (config(architectures=["T5ForConditionalGeneration"]), "unsupported model"),
    "quantised": (config(quantization_config={"quant_method": "awq"}), "quantization_config"),
    "fewer layers than stored": (config(num_hidden_layers=1), r"unexpected model\.layers\.1\."),
    "more layers than stored": (config(num_hidden_layers=3), r"missing model\.layers\.2\."),
    "another vocabulary": (config(vocab_size=500), r"embed_tokens.* has shape \(335, 24\), expected \(500, 24\)"),
    "no weights at all": (lambda folder: [path.unlink() for path in folder.glob("model*")], "holds neither"),
    "a missing shard": (remove(SECOND), f"lacks {SECOND}"),
    "a shard that is a folder": (replace_second(lambda path: path.mkdir()), f"lacks {SECOND}"),
    "a shard that links to itself": (replace_second(lambda path: path.symlink_to(SECOND)), f"lacks {SECOND}"),
    "an empty shard": (raw(SECOND, lambda data: b""), f"{SECOND} is damaged"),
    "a truncated shard": (raw(SECOND, lambda data: data[:-1]), f"{SECOND} is damaged"),
    "an extended shard": (raw(SECOND, lambda data: data + b"\0"), f"{SECOND} is damaged"),
    "a huge header": (raw(SECOND, lambda data: header(data[8:], 2**60)), f"{SECOND} is damaged"),
    "a header beyond the limit": (raw(SECOND, lambda data: header(b" " * 101_000_000)), f"{SECOND} is damaged"),
    "a header that is no JSON": (raw(SECOND, lambda data: header(b"{never}")), f"{SECOND} is damaged"),
    "overlapping tensors": (
        raw(SECOND, lambda data: header(json.dumps(OVERLAPPING).encode()) + b"1234"),
        f"{SECOND} is damaged",
    ),
    "negative offsets": (
        raw(SECOND, lambda data: header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}') + b"1234"),
        f"{SECOND} is damaged",
    ),
    "two shards swapped": (swap, f"which {INDEX} says is in {FIRST}"),
    "the same tensor in two shards": (
        lambda folder: (folder / SECOND).write_bytes((folder / FIRST).read_bytes()),
        "is stored twice",
    ),
    "an index without a map": (
        lambda folder: edit(folder / INDEX, lambda value: value.pop("weight_map")),
        "weight_map is missing",
    ),
    "an empty map": (index(lambda names: names.clear()), "weight_map is missing, empty"),
    "an index of numbers": (index(lambda names: names.update({NORM: 2})), "not a map from tensor name to file name"),
    "an index that is cut": (raw(INDEX, lambda data: data[:40]), r"index\.json is not valid JSON"),
    "an index that points to itself": (index(lambda names: names.update({NORM: INDEX})), OUTSIDE),
    "a path out of the folder": (index(lambda names: names.update({NORM: "../other.safetensors"})), OUTSIDE),
    "an absolute path": (index(lambda names: names.update({NORM: "/etc/model.safetensors"})), OUTSIDE),
    "a tensor of the index that is not there": (
        index(lambda names: names.update({"model.layers.0.extra": FIRST})),
        f"missing model.layers.0.extra, which {INDEX} says",
    ),
    "an extra key": (
        single(lambda tensors: tensors.update({"model.norm.bias": torch.zeros(3)})),
        r"unexpected model\.norm\.bias",
    ),
    "a missing key": (single(lambda tensors: tensors.pop(NORM)), f"missing {NORM}"),
    "a wrong shape": (
        single(lambda tensors: tensors.update({UP: torch.zeros(24, 40)})),
        rf"{UP} .*shape \(24, 40\), expected \(40, 24\)",
    ),
    "integer weights": (single(lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int8)})), "stored as I8"),
    "tokenizer.json is missing": (remove("tokenizer.json"), r"tokenizer\.json does not exist"),
    "tokenizer.json is cut": (raw("tokenizer.json", lambda data: data[:1000]), r"tokenizer\.json is not valid JSON"),
    "tokenizer.json has no model": (
        lambda folder: edit(folder / "tokenizer.json", lambda value: value.pop("model")),
        r"tokenizer\.json",
    ),
    "generation_config.json is no object": (
        raw("generation_config.json", lambda data: b"7"),
        r"generation_config\.json holds a JSON int",
    ),
}
WORDS = ("shard", "header", "tensor", "offsets", "map", "index", "path", "key", "shape", "weights")
ABOUT_WEIGHTS = [name for name in DAMAGES if any(word in name for word in WORDS)]


@pytest.fixture
def folder(make_model, tokenizer, tmp_path) -> Path:
    """A good model folder with two shards."""
    model = make_model(vocab_size=tokenizer.vocab_size)
    save_pretrained(model, tokenizer, tmp_path, shard_bytes=48_000)
    assert (tmp_path / SECOND).exists()
    load_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_folder_is_one_clear_error(name, folder):
    damage, words = DAMAGES[name]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load_pretrained(folder)
    assert str(folder) in str(error.value)
    # Not UnicodeError or JSONDecodeError, whose messages do not name the file.
    assert type(error.value) in (ValueError, DamagedError, FileNotFoundError)


@pytest.mark.parametrize("name", ABOUT_WEIGHTS)
def test_nothing_of_broken_weights_reaches_a_model(name, folder, make_model, tokenizer):
    model = make_model(seed=9, vocab_size=tokenizer.vocab_size)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    DAMAGES[name][0](folder)
    with pytest.raises((ValueError, FileNotFoundError)):
        load_weights(model, folder)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_float32_weights_that_float16_cannot_hold_are_refused(folder):
    single(lambda tensors: tensors.update({NORM: tensors[NORM] * 1e5}))(folder)
    load_pretrained(folder, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=f"{NORM} holds values beyond float16"):
        load_pretrained(folder, dtype=torch.float16)
