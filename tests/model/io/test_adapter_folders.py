"""Folders of adapters as PEFT, unsloth and TRL leave them: which layers, at what scale, over which base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from infer.merge import main as merge
from taosr1.model.io.folders import weights_fingerprint
from taosr1.model.io.weights import load_decoder, load_pretrained, save_pretrained
from taosr1.model.lora import LoraConfig, adapters, add_adapters
from taosr1.model.tokenizer import Tokenizer

IDS = torch.tensor([[5, 9, 2, 60, 3, 11, 40]])
UNSLOTH = (  # as unsloth's FastLanguageModel writes it
    "(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:k_proj|v_proj|q_proj|o_proj)"
    ".*?)|(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\\.(?:(?:k_proj|"
    "v_proj|q_proj|o_proj)))"
)


@pytest.fixture
def base(make_model, tokenizer, tmp_path) -> Path:
    save_pretrained(make_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    """Adapters as this project saves them, without the tokenizer's files."""
    model, tokenizer = load_pretrained(base)
    add_adapters(model, LoraConfig(2, 4.0, targets=("q_proj",)))
    with torch.no_grad():
        for layer in adapters(model):
            layer.lora_B.weight.fill_(0.3)
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / "adapter" / name).unlink()
    return tmp_path / "adapter"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": UNSLOTH},
        {"target_modules": r".*\.(?:0|1)\.mlp\.(?:gate|up|down)_proj"},
        {"target_modules": r"model\.layers\.1\..*_proj"},  # some layers only
        {"target_modules": "all-linear"},
        {"target_modules": ["self_attn.q_proj", "model.layers.1.mlp.up_proj"]},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": ["o_proj"], "modules_to_save": None, "lora_dropout": 0.1},
    ],
)
def test_adapters_stand_where_peft_puts_them_and_at_its_scale(settings, base, tmp_path, assert_close):
    peft = pytest.importorskip("peft", reason="parity with PEFT needs it (pip install .[dev])")
    transformers = pytest.importorskip("transformers", reason="parity with PEFT needs it (pip install .[dev])")
    below = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(below, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    # PEFT writes the names that it found; an unchanged setting is in the files of other programs.
    targets = settings["target_modules"]
    edit(tmp_path / "adapter/adapter_config.json", target_modules=targets, base_model_name_or_path=str(base),
         unsloth_fixed=True, corda_config=None, eva_config=None, qalora_group_size=16)  # fmt: skip
    ours = load_pretrained(tmp_path / "adapter")[0]
    with torch.no_grad():
        assert_close(ours(IDS), theirs(IDS).logits)
        assert (ours(IDS) - load_decoder(base)(IDS)).abs().max() > 0.01


def test_adapters_with_a_pattern_are_saved_with_it(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    add_adapters(model, LoraConfig(2, 4.0, pattern=r".*layers\.1\..*_proj"))
    assert len(adapters(model)) == 7
    save_pretrained(model, tokenizer, tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert stored["target_modules"] == r".*layers\.1\..*_proj"
    assert torch.equal(load_decoder(tmp_path / "adapter")(IDS), model(IDS))


# --- the base ---------------------------------------------------------------------------------------------------------


def test_a_base_is_found_from_here_and_from_the_adapters_folder(adapter, base, tmp_path, monkeypatch):
    expected = load_decoder(adapter)(IDS)
    for named, here in (("../base", tmp_path / "elsewhere"), ("base", tmp_path), ("./base", tmp_path)):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        edit(adapter / "adapter_config.json", base_model_name_or_path=named)
        assert torch.equal(load_decoder(adapter)(IDS), expected)
        assert weights_fingerprint(str(adapter)).startswith("adapter, sha256 ")


@pytest.mark.parametrize("gone", ["/models/gone", "./gone", "gone", "C:\\models\\qwen"])
def test_a_base_that_is_gone_is_named_with_the_file_to_edit(gone, adapter):
    edit(adapter / "adapter_config.json", base_model_name_or_path=gone)
    with pytest.raises(FileNotFoundError) as error:
        load_pretrained(adapter)
    assert f"edit base_model_name_or_path in {adapter / 'adapter_config.json'}" in str(error.value)


def test_a_quantised_base_is_named_with_the_file_to_edit(adapter, base):
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ValueError, match="quantization_config=.*expected none") as error:
        load_pretrained(adapter)
    hint = f"edit base_model_name_or_path in {adapter / 'adapter_config.json'} to the same model without quantisation"
    assert hint in str(error.value)


# --- tokens that were added -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.embed_tokens.modules_to_save.weight"]
)
def test_trained_embeddings_in_an_adapter_are_refused_by_name(name, adapter, base):
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path) | {f"base_model.model.{name}": torch.zeros(410, 24)}
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"holds whole weights beside the adapters \({name}\).*merge_and_unload"):
        load_pretrained(adapter)


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({"added_tokens.json": {"<|im_end|>": 381}}, "'<|im_end|>'"),
        ({"special_tokens_map.json": {"sep_token": "[SEP]"}}, "'[SEP]'"),
        ({"tokenizer_config.json": {"extra_special_tokens": ["<a>", "<b>", "<c>", "<d>"]}}, "'<a>', '<b>', '<c>', ..."),
    ],
)
def test_tokens_without_embedding_rows_are_refused_by_name(files, names, adapter, base):
    rows = json.loads((base / "config.json").read_text())["vocab_size"]
    for name, value in files.items():
        value = {"<|im_end|>": rows} if name == "added_tokens.json" else value
        (adapter / name).write_text(json.dumps(value))
    with pytest.raises(ValueError, match=f"but the model only has vocab_size={rows}") as error:
        load_pretrained(adapter)
    assert f"or {names} were added without new embedding rows" in str(error.value)


# --- what is saved afterwards -----------------------------------------------------------------------------------------

TRAINED = "{% for m in messages %}<|user|>[INST] {{ m.content }} [/INST]{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"  # noqa: E501
USER = [{"role": "user", "content": "mug"}]


@pytest.mark.parametrize("kind", ["a template alone", "a config alone", "a whole tokenizer"])
def test_a_merged_model_has_the_adapters_tokenizer(kind, adapter, base, tmp_path):
    if kind == "a template alone":
        (adapter / "chat_template.jinja").write_text(TRAINED)
    elif kind == "a config alone":
        (adapter / "tokenizer_config.json").write_text(json.dumps({"chat_template": TRAINED}))
    else:
        shutil.copy(base / "tokenizer.json", adapter)
        shutil.copy(base / "tokenizer_config.json", adapter)
        edit(adapter / "tokenizer_config.json", chat_template=TRAINED)
    tokenizer = load_pretrained(adapter)[1]
    assert tokenizer.render_prompt(USER) == "<|user|>[INST] mug [/INST]<|assistant|>"
    merge(["--model", str(adapter), "--out", str(tmp_path / "merged")])
    merged, again = load_pretrained(tmp_path / "merged")
    assert again.render_prompt(USER) == tokenizer.render_prompt(USER) and again.eos_ids == tokenizer.eos_ids
    assert torch.equal(merged(IDS), load_decoder(adapter)(IDS))
    assert Tokenizer(tmp_path / "merged").fingerprint() == tokenizer.fingerprint()
