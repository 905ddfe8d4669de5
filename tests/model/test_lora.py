"""Adapters: their formula by hand, switched off and merged; their files against PEFT's."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from taosr1.model.io.adapters import load_adapters, save_adapters
from taosr1.model.io.weights import load_decoder, load_pretrained, save_pretrained
from taosr1.model.lora import TARGETS, LoraConfig, LoraLinear, adapters, adapters_off, add_adapters, merge_adapters

IDS = torch.tensor([[5, 9, 2, 60, 3, 11, 40]])
ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


def adapted(model, *, seed: int = 7, **settings):
    """A model with adapters that say something: B is drawn too."""
    add_adapters(model, LoraConfig(**{"rank": 3, "alpha": 6.0, **settings}), torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for layer in adapters(model):
            layer.lora_B.weight.copy_(torch.randn(layer.lora_B.weight.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def base(make_model, tokenizer, tmp_path):
    """Folder of a saved model, and the model as loaded from it."""
    save_pretrained(make_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def test_an_adapter_adds_alpha_over_rank_times_b_a_x():
    """W = [[1, 2]], A = [[3, 0], [0, 5]], B = [[1, 10]], alpha / rank = 4 / 2 = 2, x = (1, 1):
    W x = 3, A x = (3, 5), B A x = 53, so y = 3 + 2 * 53 = 109."""
    linear = torch.nn.Linear(2, 1, bias=False)
    layer = LoraLinear(linear, LoraConfig(2, 4.0))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0]]))
        layer.lora_A.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 5.0]]))
        layer.lora_B.weight.copy_(torch.tensor([[1.0, 10.0]]))
    x = torch.ones(1, 2)
    assert layer(x).item() == 109
    with adapters_off(layer):
        assert layer(x).item() == 3
    assert layer(x).item() == 109
    assert layer.merged()(x).item() == pytest.approx(109)


def test_fresh_adapters_change_nothing_and_only_they_are_trained(family, make_model):
    model, targets = make_model(family), TARGETS if family != "qwen3_moe" else ATTENTION
    before, names = model(IDS).detach(), set(model.state_dict())
    add_adapters(model, LoraConfig(2, 4.0, targets=targets))
    assert torch.equal(model(IDS), before)
    assert names < set(model.state_dict())  # every old name is still there
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * len(targets) and all(".lora_" in name for name in trained)
    model(IDS).logsumexp(-1).sum().backward()
    assert all((parameter.grad is not None) == (name in trained) for name, parameter in model.named_parameters())


def test_adapters_switched_off_are_the_model_below_even_after_an_error(make_model):
    model = make_model()
    before = model(IDS).detach()
    adapted(model)
    with_adapters = model(IDS)
    assert (with_adapters - before).abs().max() > 0.1
    with pytest.raises(RuntimeError, match="inside"), adapters_off(model):
        assert torch.equal(model(IDS), before)
        raise RuntimeError("inside")
    assert torch.equal(model(IDS), with_adapters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_weights_are_the_adapted_ones_and_plain_again(dtype, make_model):
    model = adapted(make_model("qwen2").to(dtype))
    expected, names = model(IDS), {name for name in model.state_dict() if ".lora_" not in name}
    merge_adapters(model)
    assert set(model.state_dict()) == names and not adapters(model)
    assert all(parameter.requires_grad and parameter.dtype == dtype for parameter in model.parameters())
    error = (model(IDS) - expected).float().std() / expected.float().std()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)


def test_dropout_acts_on_the_adapters_input_while_training_only(make_model):
    model = adapted(make_model(), dropout=0.5)
    with torch.no_grad():
        assert torch.equal(model(IDS), model(IDS))  # sampling and evaluation, though the module is in training mode
    assert not torch.equal(model(IDS), model(IDS))
    model.eval()
    assert torch.equal(model(IDS), model(IDS))
    with adapters_off(model.train()):
        assert torch.equal(model(IDS), model(IDS))  # the frozen weights see all of it


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": ("q_proj", "lm_head")}, "targets are lm_head, q_proj"),
        ({"targets": ()}, "targets are none"),
    ],
)
def test_a_bad_config_is_refused_by_name(settings, words):
    with pytest.raises(ValueError, match=words):
        LoraConfig(**{"rank": 2, "alpha": 4.0, **settings})


def test_targets_that_do_not_exist_and_second_adapters_are_refused(make_model):
    with pytest.raises(ValueError, match="down_proj, gate_proj, up_proj name no linear layer.*stacked experts"):
        add_adapters(make_model("qwen3_moe"), LoraConfig(2, 4.0))
    model = adapted(make_model())
    with pytest.raises(ValueError, match="has adapters already"):
        add_adapters(model, LoraConfig(2, 4.0))


def test_saved_adapters_load_over_their_base_and_as_one_merged_model(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    adapted(model)
    save_pretrained(model, tokenizer, tmp_path / "adapters")
    files = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert files == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    again = adapted(load_decoder(base), seed=99)
    load_adapters(again, tmp_path / "adapters")
    assert torch.equal(again(IDS), model(IDS))
    merged, merged_tokenizer = load_pretrained(tmp_path / "adapters")
    assert not adapters(merged)
    torch.testing.assert_close(merged(IDS), model(IDS), rtol=1e-5, atol=1e-5)
    assert merged_tokenizer.eos_ids == tokenizer.eos_ids


def test_adapters_may_stand_on_adapters(base, tmp_path):
    """SFT with LoRA, then GRPO with LoRA: the second stage's base is the first stage's folder."""
    first, tokenizer = load_pretrained(base)
    save_pretrained(adapted(first), tokenizer, tmp_path / "first")
    second, _ = load_pretrained(tmp_path / "first")
    save_pretrained(adapted(second, seed=20), tokenizer, tmp_path / "second")
    torch.testing.assert_close(load_decoder(tmp_path / "second")(IDS), second(IDS), rtol=1e-5, atol=1e-5)


def test_the_tokenizer_of_the_base_serves_adapters_that_come_without_one(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    save_adapters(adapted(model), tmp_path / "adapters", str(base))
    assert load_pretrained(tmp_path / "adapters")[1].encode_text("mug") == tokenizer.encode_text("mug")


def edit(path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is 'PROMPT_TUNING'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": "(q_proj"}, r"pattern '\(q_proj' is no regular expression"),
        ({"target_modules": ".*c_attn"}, r"targets '\.\*c_attn' name no linear layer"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": ["c_attn"]}, "targets are c_attn"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 4}, r"lora_A.weight has shape \(3, 24\), expected \(4, 24\)"),
        ({"r": None}, "rank is None"),
        ({"lora_alpha": "six"}, "alpha is 'six'"),
        ({"target_modules": ["q_proj"]}, r"unexpected base_model\.model\.model\.layers\.0.*k_proj"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": "./gone"}, r"adapter_config\.json names the base \./gone: no model folder"),
    ],
)
def test_adapters_that_do_not_fit_are_one_clear_error(changes, words, base, tmp_path):
    model, tokenizer = load_pretrained(base)
    save_pretrained(adapted(model), tokenizer, tmp_path / "adapters")
    edit(tmp_path / "adapters/adapter_config.json", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load_pretrained(tmp_path / "adapters")
    assert str(tmp_path / "adapters") in str(error.value)


def test_broken_adapter_folders_are_named(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    folder = tmp_path / "adapters"
    save_pretrained(adapted(model), tokenizer, folder)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(folder))
    with pytest.raises(ValueError, match="whose own base are these adapters"):
        load_pretrained(folder)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        load_pretrained(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors does not exist"):
        load_pretrained(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match="holds both adapters .* and a model.s weights"):
        load_pretrained(folder)


@pytest.fixture
def peft():
    return pytest.importorskip("peft", reason="parity with PEFT needs it (pip install .[dev])")


def test_peft_loads_our_adapters_and_computes_the_same(peft, family, make_model, tokenizer, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="parity with PEFT needs transformers too (pip install .[dev])"
    )
    save_pretrained(make_model(family, vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "base")
    model, _ = load_pretrained(tmp_path / "base")
    adapted(model, targets=TARGETS if family != "qwen3_moe" else ATTENTION)
    save_pretrained(model, tokenizer, tmp_path / "adapters")
    below = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(below, tmp_path / "adapters").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
        whole = theirs.merge_and_unload()(IDS).logits
        torch.testing.assert_close(load_decoder(tmp_path / "adapters")(IDS), whole, rtol=1e-5, atol=1e-5)


def test_we_load_adapters_that_peft_trained_and_train_them_alike(peft, make_model, tokenizer, tmp_path):
    """Forward, and one step of gradient descent, from the same adapters."""
    transformers = pytest.importorskip(
        "transformers", reason="parity with PEFT needs transformers too (pip install .[dev])"
    )
    save_pretrained(make_model(vocab_size=tokenizer.vocab_size), tokenizer, tmp_path / "base")
    below = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)  # PEFT draws the adapters from the global generator
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(below, config)
    theirs.save_pretrained(tmp_path / "adapters")
    ours = add_adapters(load_decoder(tmp_path / "base"), LoraConfig(4, 8.0, targets=("q_proj", "v_proj", "down_proj")))
    load_adapters(ours, tmp_path / "adapters")
    torch.testing.assert_close(ours(IDS), theirs(IDS).logits, rtol=1e-5, atol=1e-5)
    for logits in (ours(IDS), theirs(IDS).logits):
        logits.log_softmax(-1)[..., 3].mean().backward()
    expected = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        if parameter.grad is not None:
            grad = expected.pop(f"base_model.model.{name}")
            assert (parameter.grad - grad).norm() <= 1e-4 * grad.norm(), name
    assert not expected
    torch.testing.assert_close(load_pretrained(tmp_path / "adapters")[0](IDS), ours(IDS), rtol=1e-5, atol=1e-5)


def test_stored_names_are_pefts(base, tmp_path):
    model, tokenizer = load_pretrained(base)
    save_pretrained(adapted(model, targets=("q_proj",)), tokenizer, tmp_path / "adapters")
    assert set(safetensors.torch.load_file(tmp_path / "adapters/adapter_model.safetensors")) == {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{matrix}.weight"
        for layer in (0, 1)
        for matrix in "AB"
    }
