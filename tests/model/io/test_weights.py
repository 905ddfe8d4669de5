"""Hugging Face folders in and out: nothing is lost, guessed or left half-written."""

from __future__ import annotations

import json
import os

import pytest
import safetensors.torch
import torch

from taosr1.model.io.folders import resolve_folder
from taosr1.model.io.weights import load_decoder, load_pretrained, load_weights, save_pretrained
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.files import replacing

IDS = torch.tensor([[5, 9, 2, 60, 3]])


@pytest.fixture
def saved(make_model, tokenizer, tmp_path):
    """A saved model folder and the model in it."""
    model = make_model(vocab_size=tokenizer.vocab_size)
    save_pretrained(model, tokenizer, tmp_path / "saved")
    return tmp_path / "saved", model


def rewrite(folder, change) -> None:
    """Change the stored tensors of a folder."""
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    change(tensors)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def edit_json(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_read_back_bit_for_bit(family, tied, make_model, tokenizer, tmp_path):
    model = make_model(family, vocab_size=tokenizer.vocab_size, tie_word_embeddings=tied)
    save_pretrained(model, tokenizer, tmp_path)
    loaded, loaded_tokenizer = load_pretrained(str(tmp_path))
    assert loaded.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(IDS), model(IDS))
    assert loaded_tokenizer.encode_text("steel mug") == tokenizer.encode_text("steel mug")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as stored:
        assert ("lm_head.weight" in stored.keys()) is not tied


def test_transformers_reads_the_same_tensors(transformers, family, make_model, tokenizer, assert_close, tmp_path):
    model = make_model(family, vocab_size=tokenizer.vocab_size)
    save_pretrained(model, tokenizer, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    names = {"llama3": "llama"}
    assert theirs.config.model_type == names.get(family, family)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = safetensors.torch.load_file(tmp_path / "model.safetensors")
    again = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == again.keys() and all(torch.equal(tensor, again[name]) for name, tensor in ours.items())
    assert_close(theirs(IDS).logits, model(IDS))
    assert theirs.generation_config.eos_token_id == list(tokenizer.eos_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name, tied", [("Llama", False), ("Mistral", False), ("Qwen2", True), ("Qwen3", True), ("Qwen3Moe", False)]
)
def test_a_folder_of_transformers_passes_through_unchanged(transformers, name, tied, dtype, tokenizer, tmp_path):
    """transformers -> taosr1 -> disk: equal bytes, and config keys we know nothing about are kept."""
    sizes = {"vocab_size": tokenizer.vocab_size, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"eos_token_id": 3, "tie_word_embeddings": tied}
    sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16} if name == "Qwen3Moe" else {}
    sizes |= {"sliding_window": None} if name == "Mistral" else {}
    source, target = tmp_path / "source", tmp_path / "target"
    theirs = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**sizes)).to(dtype)
    theirs.generation_config.max_new_tokens = 7
    theirs.save_pretrained(source, max_shard_size="20KB")
    tokenizer.save(source)
    edit_json(source / "config.json", my_note={"kept": True})
    assert (source / "model.safetensors.index.json").exists()  # several shards

    model, loaded_tokenizer = load_pretrained(source, dtype=dtype)
    save_pretrained(model, loaded_tokenizer, target)
    stored = safetensors.torch.load_file(target / "model.safetensors")
    expected = {}
    for path in source.glob("*.safetensors"):
        expected |= safetensors.torch.load_file(path)
    assert stored.keys() == expected.keys() and ("lm_head.weight" in stored) is not tied
    assert all(stored[key].dtype == dtype and torch.equal(stored[key], tensor) for key, tensor in expected.items())
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, target))
    assert after == {**before, **after} and after["my_note"] == {"kept": True}
    assert after["architectures"] == before["architectures"]
    assert json.loads((target / "generation_config.json").read_text())["max_new_tokens"] == 7


def test_large_weights_are_saved_in_shards_and_read_back(family, make_model, tokenizer, tmp_path):
    model = make_model(family, vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)
    save_pretrained(model, tokenizer, tmp_path, shard_bytes=20_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    for shard in shards:  # a tensor larger than a shard has one of its own
        sizes = [tensor.nbytes for tensor in safetensors.torch.load_file(tmp_path / shard).values()]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    assert torch.equal(load_decoder(tmp_path)(IDS), model(IDS))
    save_pretrained(model, tokenizer, tmp_path, shard_bytes=20_000)  # over the same files
    with pytest.raises(ValueError, match="holds other weights .*model-00001-of"):
        save_pretrained(model, tokenizer, tmp_path)  # a single file beside old shards: which would be read?


def test_large_tensors_are_copied_in_pieces(saved, monkeypatch):
    folder, model = saved
    monkeypatch.setattr("taosr1.model.io.weights.MAPPED_BYTES", 1000)
    loaded = load_decoder(folder).state_dict()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1e-3}))
        load_decoder(folder)


def test_weights_can_be_read_into_a_model_that_exists(saved, make_model, tokenizer):
    folder, model = saved
    other = make_model(seed=5, vocab_size=tokenizer.vocab_size)
    parameter = other.model.norm.weight
    load_weights(other, folder)
    assert torch.equal(other(IDS), model(IDS)) and other.model.norm.weight is parameter


def test_every_misfit_is_listed_in_one_message(saved):
    folder, _ = saved

    def damage(tensors) -> None:
        tensors["model.norm.bias"] = torch.zeros(3)
        del tensors["model.layers.0.self_attn.q_norm.weight"]
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(2, 3)
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)

    rewrite(folder, damage)
    with pytest.raises(ValueError) as error:
        load_decoder(folder)
    for words in (
        "unexpected model.norm.bias in model.safetensors",
        "missing model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.mlp.up_proj.weight in model.safetensors has shape (2, 3), expected (40, 24)",
        "model.norm.weight in model.safetensors is stored as F8_E4M3",
    ):
        assert words in str(error.value)
    assert "missing model.norm.weight" not in str(error.value)


def test_a_tied_head_stored_twice_and_derived_buffers_are_harmless(saved):
    folder, model = saved

    def add(tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    rewrite(folder, add)
    assert torch.equal(load_decoder(folder)(IDS), model(IDS))


@pytest.mark.parametrize("size", [0, 4, 8, 50, -1])
def test_truncated_weights_are_an_error_that_names_the_file(size, saved):
    folder, _ = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_decoder(folder)


def test_weights_are_cast_and_the_dtype_is_written(saved, tmp_path):
    folder, model = saved
    half, tokenizer = load_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.model.embed_tokens.weight, model.model.embed_tokens.weight.bfloat16())
    save_pretrained(half, tokenizer, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype is torch.int8, expected one of float32"):
        load_decoder(folder, dtype=torch.int8)


def test_saving_over_the_folder_a_model_was_loaded_from_leaves_that_model_alone(saved, make_model, tokenizer):
    folder, model = saved
    loaded, before = load_decoder(folder), model(IDS)
    save_pretrained(make_model(seed=1, vocab_size=tokenizer.vocab_size), tokenizer, folder)
    assert torch.equal(loaded(IDS), before)
    assert not torch.equal(load_decoder(folder)(IDS), before)


def test_every_file_is_forced_to_disk_before_it_is_renamed(saved, tokenizer, monkeypatch, tmp_path):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(("fsync", os.fstat(handle).st_ino)), fsync(handle)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (events.append(("replace", os.stat(a).st_ino, os.path.basename(b))), replace(a, b))
    )
    save_pretrained(saved[1], tokenizer, tmp_path / "new")
    renamed = [event[2] for event in events if event[0] == "replace"]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(renamed)
    assert sorted(renamed) == sorted(path.name for path in (tmp_path / "new").iterdir())
    for number, event in enumerate(events):
        if event[0] == "replace":
            assert events[number - 1] == ("fsync", event[1])  # the file itself, just before
            assert events[number + 1][0] == "fsync"  # its folder, just after


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    with pytest.raises(OSError, match="disk full"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_weights_are_as_readable_as_the_other_files(saved):
    assert len({path.stat().st_mode for path in saved[0].iterdir()}) == 1


def test_a_tokenizer_of_another_model_is_refused(saved, make_model):
    folder, _ = saved
    save_pretrained(make_model(vocab_size=50), Tokenizer(folder), folder)
    with pytest.raises(ValueError, match="vocab_size=50: the two do not belong together"):
        load_pretrained(folder)


def test_an_unsupported_config_names_its_file(saved):
    folder, _ = saved
    edit_json(folder / "config.json", rope_scaling={"rope_type": "yarn"})
    with pytest.raises(ValueError, match=r"config\.json: .*\n.*yarn"):
        load_decoder(folder)


def test_what_is_no_model_folder_is_explained(saved, tmp_path):
    folder, _ = saved
    with pytest.raises(FileNotFoundError, match="no model folder ./nowhere"):
        load_pretrained("./nowhere")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is a file, expected a model folder"):
        load_pretrained(folder / "config.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="it has no config.json"):
        load_pretrained(tmp_path / "empty")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin cannot be read: convert"):
        load_pretrained(folder)


def test_a_run_folder_points_to_its_checkpoints(saved, tmp_path):
    folder, _ = saved
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text('{"seed": 0}')  # the run's settings, not a model's
    with pytest.raises(FileNotFoundError, match="is a run folder, .*none is complete yet"):
        load_pretrained(run)
    folder.rename(run / "checkpoints/step-000003")
    with pytest.raises(FileNotFoundError, match=r"is a run folder, .*checkpoints/step-000003"):
        load_pretrained(run)


def test_a_hub_name_without_a_network_is_an_error_that_says_so(monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="hub ids need huggingface_hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="Nobody/No-Model is neither a local folder nor available"):
        resolve_folder("Nobody/No-Model")
