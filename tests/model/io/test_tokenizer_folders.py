"""Tokenizers of Hugging Face folders as people bring them: the prompt is the one that transformers renders from them.

Each kind of folder is written here and read by AutoTokenizer and by us: names and added tokens spread over several
files, adapters with a tokenizer of their own, templates in every place where a template may be.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from taosr1.judge_model import BUNDLED_FOLDER
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.messages import say_once

USER = [{"role": "user", "content": "a mug, not plastic"}]
PLAIN = (
    "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NAMED = (
    "{{ bos_token }}{% for m in messages %}{% if sep_token is defined %}{{ sep_token }}{% endif %}"
    "<|user|>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


TOOLS = "{{ tools }}"


def write(folder: Path, config: dict | None = None, without: tuple[str, ...] = (), **files) -> Path:
    """The bundled tokenizer with other settings. files: by their names without an ending, as text or JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUNDLED_FOLDER / "tokenizer.json", folder)
    settings = json.loads((BUNDLED_FOLDER / "tokenizer_config.json").read_text()) | {"chat_template": NAMED}
    settings |= config or {}
    settings = {key: value for key, value in settings.items() if key not in without}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for name, value in files.items():
        path = folder / (f"{name}.jinja" if isinstance(value, str) else f"{name}.json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


def token(text: str, **flags) -> dict:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": text, **off, **flags}


def added(text: str, **flags) -> dict:
    return {"__type": "AddedToken", **token(text, special=True, **flags)}


def listed(**more: str) -> dict:
    """An added_tokens_decoder: the control tokens of the bundled tokenizer, and more by id."""
    known = {str(number): text for number, text in enumerate(("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"))}
    return {number: token(text, special=True) for number, text in {**known, **more}.items()}


def special(**names) -> dict:
    return {"special_tokens_map": names}


# What is written beside tokenizer.json: settings, settings that are left out, other files.
NAMES = {
    "a name only in the map": ({}, (), special(bos_token="<|user|>")),
    "objects in the map": ({}, (), special(bos_token=token("<|user|>"), sep_token=token("<|pad|>"))),
    "the map over the config": ({"bos_token": "<|pad|>"}, (), special(bos_token="<|user|>")),
    "a null in the map": ({"bos_token": "<|pad|>"}, (), {"special_tokens_map": {"bos_token": None}}),
    "a null in the config": ({"bos_token": None, "sep_token": None}, (), {}),
    "an object in the config": ({"bos_token": added("<|user|>"), "sep_token": added("<|pad|>", lstrip=True)}, (), {}),
    "a decoder hides the map": (
        {"added_tokens_decoder": listed(), "bos_token": "<|pad|>"}, (), special(bos_token="<|user|>")
    ),
    "end token in the map alone": ({}, ("eos_token",), {"special_tokens_map": {"eos_token": token("<|end|>")}}),
    "a named token that is new": ({"sep_token": "<|sep|>"}, (), {}),
    "a new token in the map": ({}, (), {"special_tokens_map": {"sep_token": token("<|sep|>", rstrip=True)}}),
    "names of a model's own": ({"image_token": "<|image|>", "sep_token": "<|pad|>"}, (), {}),
    "extra tokens, named": ({"extra_special_tokens": {"audio_token": "<|audio|>"}}, (), {}),
    "extra tokens, listed": ({"extra_special_tokens": ["<|x|>", added("<|y|>")]}, ("additional_special_tokens",), {}),
    "additional tokens": ({"additional_special_tokens": ["<|user|>", "<|new|>"]}, (), {}),
    "additional tokens in the map": (
        {}, ("additional_special_tokens",), {"special_tokens_map": {"additional_special_tokens": ["<|m1|>", "<|m2|>"]}}
    ),
    "extra tokens in both": (
        {"extra_special_tokens": ["<|a|>"]}, (), special(extra_special_tokens=["<|b|>", token("<|c|>")])
    ),
    "no extra tokens": ({"extra_special_tokens": [], "additional_special_tokens": None}, (), {}),
    "a decoder with a new token": (
        {"added_tokens_decoder": listed(**{"1024": "<|sep|>"}), "sep_token": "<|sep|>"}, (), {}
    ),
    "a decoder that strips": (
        {"added_tokens_decoder": listed() | {"1024": token("<|sep|>", lstrip=True, rstrip=True, special=False)}}, (), {}
    ),
    "added_tokens.json": ({"sep_token": "<|sep|>"}, (), {"added_tokens": {"<|sep|>": 1024, "<tool>": 1025}}),
    "a decoder hides added_tokens.json": (
        {"added_tokens_decoder": listed()}, (), {"added_tokens": {"<|sep|>": 1024}}
    ),
    "new names, out of order": (
        {"image_token": "<|i|>", "pad_token": "<|p|>", "sep_token": "<|s|>", "bos_token": "<|b|>"}, (), {}
    ),
    "new names, out of order, in the map": ({}, (), special(mask_token="<|m|>", unk_token="<|u|>", cls_token="<|c|>")),
    "extra tokens before the names": (
        {"extra_special_tokens": ["<|e|>"], "unk_token": "<|u|>", "bos_token": "<|b|>"}, (), {}
    ),
    "a model's own name in both": ({"image_token": "<|x|>"}, (), special(image_token="<|y|>")),
    "a model's own names, new in both": (
        {"image_token": "<|x|>", "audio_token": "<|new|>"}, (), special(video_token="<|y|>", audio_token="<|m2|>")
    ),
    "a model's own name as an object": ({"image_token": added("<|x|>")}, (), special(image_token="<|y|>")),
    "an object that is no token": ({"image_token": token("<|user|>")}, (), {}),
    "special tokens as text": ({"split_special_tokens": True}, (), {}),
    "names of a class": ({"tokenizer_class": "PreTrainedTokenizerFast"}, ("pad_token", "unk_token"), {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_and_added_tokens_are_those_of_transformers(kind, transformers, tmp_path):
    config, without, files = NAMES[kind]
    folder = write(tmp_path, config, without, **files)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    rendered = theirs.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert ours.render_prompt(USER) == rendered
    assert ours._named == theirs.special_tokens_map
    text = f"{rendered} <|sep|> x<|new|><|m2|><|a|><|b|> <|c|><|x|><|y|><tool> <|image|><|audio|>"
    assert ours.encode_trusted(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.eos_ids[0] == theirs.eos_token_id and ours.vocab_size == len(theirs)
    # Saved by us and read again by both, it is the same tokenizer.
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.apply_chat_template(USER, tokenize=False, add_generation_prompt=True) == rendered
    assert again(text).input_ids == theirs(text).input_ids
    assert Tokenizer(tmp_path / "saved").fingerprint() == ours.fingerprint()
    # And a title cannot spell any of its control tokens.
    assert set(ours._control) == {i for i, t in theirs.added_tokens_decoder.items() if t.content.strip()}
    assert ours._control.isdisjoint(ours.encode_text(text))


@pytest.mark.parametrize("named", [None, "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "LlamaTokenizer"])
@pytest.mark.parametrize("family", [None, "qwen2", "qwen3", "qwen3_moe", "llama", "mistral"])
def test_names_that_no_file_gives_are_those_of_the_class_that_transformers_chooses(
    family, named, transformers, tmp_path
):
    without = ("pad_token", "eos_token")
    folder = write(tmp_path, {"tokenizer_class": named}, without, generation_config={"eos_token_id": 3})
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("<|pad|>", "<|endoftext|>"))
    if family:
        (folder / "config.json").write_text(json.dumps({"model_type": family, "vocab_size": 1024}))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    assert ours._named == theirs.special_tokens_map
    assert ours.eos_ids == ((3,) if theirs.eos_token_id is None else (theirs.eos_token_id, 3))


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        ({"added_tokens_decoder": listed(**{"1030": "<|sep|>"})}, {}, "gives '<|sep|>' the id 1030, .* gives it 1024"),
        ({"added_tokens_decoder": listed() | {"3": token("<|x|>")}}, {}, "the id 3, .* it 1024, where 3 is '<|end|>'"),
        ({}, {"added_tokens": {"<|user|>": 7}}, "added_tokens.json gives '<|user|>' the id 7, .* gives it 1"),
        ({"added_tokens_decoder": ["<|x|>"]}, {}, "field 'added_tokens_decoder' is .*, expected tokens by id"),
        ({"added_tokens_decoder": {"ten": "<|x|>"}}, {}, "field 'added_tokens_decoder': id 'ten' is no number below"),
        ({"added_tokens_decoder": {"9": {"special": True}}}, {}, "field 'added_tokens_decoder', id 9 is .*expected"),
        ({"added_tokens_decoder": {"-1": token("<|x|>")}}, {}, "id '-1' is no number below"),
        ({}, {"added_tokens": {"<|x|>": 10**400}}, "added_tokens.json: field '<|x|>': id 1000"),
        ({}, {"special_tokens_map": {"pad_token": 7}}, "special_tokens_map.json: field 'pad_token' is 7"),
        ({"eos_token": 3}, {}, "field 'eos_token' is 3, expected a token's text or an object"),
        ({"extra_special_tokens": "<|x|>"}, {}, "field 'extra_special_tokens' is '<|x|>', expected a list"),
        ({}, {"special_tokens_map": ["<|x|>"]}, "special_tokens_map.json holds a list, expected a JSON object"),
        ({"sep_token": "\ud800"}, {}, "tokenizer_config.json is not valid JSON: .*surrogates not allowed"),
        ({"chat_template": {"../../x": TOOLS}}, {}, "has a template named '../../x', a path"),
        ({"chat_template": [{"name": "/etc/x", "template": TOOLS}]}, {}, "has a template named '/etc/x', a path"),
        ({"chat_template": 7}, {}, "field 'chat_template' holds something else than text"),
    ],
)  # fmt: skip
def test_files_that_contradict_each_other_or_cannot_be_read_are_refused_by_name(config, files, words, tmp_path):
    with pytest.raises(ValueError, match=words.replace("|", r"\|")) as error:
        Tokenizer(write(tmp_path, config, **files))
    assert str(tmp_path) in str(error.value)


# --- templates --------------------------------------------------------------------------------------------------------

FILE = PLAIN.replace("<|user|>", "<|user|>file: ")
TEMPLATES = {
    "in the config": ({"chat_template": PLAIN}, {}, PLAIN),
    "a file over the config": ({"chat_template": PLAIN}, {"chat_template": FILE}, FILE),
    "a list with a default": ({"chat_template": [{"name": "tool_use", "template": TOOLS},
                                                 {"name": "default", "template": PLAIN}]}, {}, PLAIN),
    "an object with a default": ({"chat_template": {"rag": TOOLS, "default": PLAIN}}, {}, PLAIN),
    "a folder beside the file": ({}, {"chat_template": FILE, "additional_chat_templates/tool_use": TOOLS}, FILE),
    "a default in both": ({}, {"chat_template": PLAIN, "additional_chat_templates/default": FILE}, FILE),
    "a folder with a default": ({"chat_template": PLAIN}, {"additional_chat_templates/default": FILE}, FILE),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_template_is_the_one_that_transformers_takes(kind, transformers, tmp_path):
    config, files, expected = TEMPLATES[kind]
    folder = write(tmp_path, config, **files)
    ours = Tokenizer(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.chat_template == theirs.get_chat_template() == expected
    ours.save(tmp_path / "saved")
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.chat_template == theirs.chat_template  # the named ones, too


def test_named_templates_without_a_default_are_refused_by_their_names(tmp_path):
    named = [{"name": "tool_use", "template": TOOLS}, {"name": "rag", "template": TOOLS}]
    with pytest.raises(ValueError, match="no chat template named 'default', only rag, tool_use"):
        Tokenizer(write(tmp_path, {"chat_template": named})).render_prompt(USER)


def test_the_template_file_of_old_processors_is_read_where_there_is_no_other(tmp_path):
    old = {"chat_template": FILE}
    alone = write(tmp_path / "alone", without=("chat_template",), chat_template=old)
    assert Tokenizer(alone).chat_template == FILE
    assert Tokenizer(write(tmp_path / "both", {"chat_template": PLAIN}, chat_template=old)).chat_template == PLAIN


# --- adapters ---------------------------------------------------------------------------------------------------------

TRAINED = "{% for m in messages %}<|user|>[INST] {{ m.content }} [/INST]{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"  # noqa: E501


@pytest.mark.parametrize(
    ("base", "own"),
    [
        ({"config": {"chat_template": PLAIN}}, {"config": {"chat_template": TRAINED}}),
        ({"without": ("chat_template",)}, {"config": {"chat_template": TRAINED}}),
        ({"chat_template": FILE}, {"config": {"chat_template": TRAINED, "bos_token": "<|pad|>"}}),
        ({"config": {"bos_token": "<|pad|>"}}, {"chat_template": TRAINED, "config": {"bos_token": None}}),
        ({"special_tokens_map": {"eos_token": "<|user|>"}}, {"config": {"chat_template": NAMED}}),
        ({}, {"config": {"chat_template": NAMED, "eos_token": "<|assistant|>", "sep_token": "<|sep|>"}}),
    ],
)
def test_an_adapters_own_tokenizer_wins_over_its_bases(base, own, transformers, tmp_path):
    below, above = write(tmp_path / "base", **base), write(tmp_path / "adapter", **own)
    ours, theirs = Tokenizer(above, below), transformers.AutoTokenizer.from_pretrained(above)
    rendered = theirs.apply_chat_template(USER, tokenize=False, add_generation_prompt=True)
    assert ours.render_prompt(USER) == rendered
    assert ours._named == theirs.special_tokens_map and ours.eos_ids[0] == theirs.eos_token_id
    ours.save(tmp_path / "saved")  # as a checkpoint or a merged model has it
    assert Tokenizer(tmp_path / "saved").render_prompt(USER) == rendered


@pytest.mark.parametrize(
    ("names", "own", "expected"),
    [
        ({"chat_template.jinja": TRAINED}, {}, TRAINED),
        ({}, {"chat_template": TRAINED}, TRAINED),
        ({"additional_chat_templates/default.jinja": TRAINED}, {"eos_token": "<|assistant|>"}, TRAINED),
        ({}, {"eos_token": "<|assistant|>"}, FILE),
        ({"special_tokens_map.json": '{"eos_token": "<|assistant|>"}'}, None, FILE),
    ],
)
def test_an_adapter_with_some_of_the_files_changes_those_settings_alone(names, own, expected, tmp_path):
    base = write(tmp_path / "base", {"chat_template": PLAIN}, chat_template=FILE,
                 special_tokens_map={"eos_token": "<|end|>", "bos_token": "<|pad|>"})  # fmt: skip
    adapter = tmp_path / "adapter"
    for name, value in {**names, **({} if own is None else {"tokenizer_config.json": json.dumps(own)})}.items():
        (adapter / name).parent.mkdir(parents=True, exist_ok=True)
        (adapter / name).write_text(value)
    tokenizer = Tokenizer(adapter, base)
    changed = ({"eos_token": "<|assistant|>"} if own is None else own).get("eos_token", "<|end|>")
    assert tokenizer.chat_template == expected
    assert tokenizer._named["bos_token"] == "<|pad|>" and tokenizer._named["eos_token"] == changed
    assert tokenizer.eos_ids[0] == tokenizer.encode_trusted(changed)[0]
    tokenizer.save(tmp_path / "saved")
    saved = Tokenizer(tmp_path / "saved")
    assert (saved.chat_template, saved._named) == (expected, tokenizer._named)


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        (special(eos_token="<|pad|>"), {"tokenizer_config": {"eos_token": "<|end|>"}}, "<|end|>"),
        (special(eos_token="<|pad|>"), {"tokenizer_config": {"eos_token": "<|user|>", "bos_token": None}}, "<|user|>"),
        (special(eos_token=token("<|user|>")), special(eos_token="<|end|>"), "<|end|>"),
        ({"config": {"added_tokens_decoder": listed()}}, special(eos_token="<|pad|>"), "<|pad|>"),
        ({"config": {"added_tokens_decoder": listed()}}, special(eos_token=token("<|user|>")), "<|user|>"),
        (
            {"config": {"added_tokens_decoder": listed()}},
            {"added_tokens": {"<|stop|>": 1024, "<|end|>": 3}} | special(eos_token=token("<|stop|>", rstrip=True)),
            "<|stop|>",
        ),
        (
            {"config": {"added_tokens_decoder": listed(), "eos_token": "<|pad|>"}} | special(eos_token="<|user|>"),
            {"tokenizer_config": {"eos_token": "<|assistant|>"}},
            "<|assistant|>",
        ),
    ],
)
def test_what_an_adapter_names_comes_before_all_that_its_base_names(base, own, expected, transformers, tmp_path):
    folder, adapter = write(tmp_path / "base", **base), tmp_path / "adapter"
    adapter.mkdir()
    for name, value in own.items():
        (adapter / f"{name}.json").write_text(json.dumps(value))
    tokenizer = Tokenizer(adapter, folder)
    assert tokenizer._named["eos_token"] == expected
    assert tokenizer.eos_ids[0] == tokenizer.encode_trusted(expected)[0]
    tokenizer.save(tmp_path / "saved")  # as a checkpoint has it, where transformers reads the same
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs.eos_token == expected and theirs.eos_token_id == tokenizer.eos_ids[0]
    assert Tokenizer(tmp_path / "saved").eos_ids == tokenizer.eos_ids


def test_an_adapters_tokenizer_without_a_template_takes_its_bases_and_says_so(tmp_path, capsys):
    say_once.cache_clear()
    above = write(tmp_path / "adapter", without=("chat_template",))
    tokenizer = Tokenizer(above, write(tmp_path / "base", {"chat_template": FILE}))
    assert tokenizer.chat_template == FILE
    assert f"the tokenizer in {above} has no chat template; that of its base" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("tokenizer.json",), ("tokenizer.json", "chat_template.jinja")])
def test_an_adapters_tokenizer_json_alone_has_the_names_of_its_base(names, tmp_path):
    whole = write(tmp_path / "whole", chat_template=NAMED)
    base = write(tmp_path / "base", {"bos_token": "<|pad|>", "chat_template": NAMED}, **special(sep_token="<|user|>"))
    (tmp_path / "adapter").mkdir()
    for name in names:
        shutil.copy(whole / name, tmp_path / "adapter")
    tokenizer = Tokenizer(tmp_path / "adapter", base)
    assert tokenizer.render_prompt(USER) == Tokenizer(base).render_prompt(USER)
    assert tokenizer.render_prompt(USER).startswith("<|pad|><|user|><|user|>a mug")
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer(tmp_path / "saved").render_prompt(USER) == tokenizer.render_prompt(USER)


def test_an_adapter_with_no_files_of_a_tokenizer_has_its_bases(tmp_path):
    base = write(tmp_path / "base", chat_template=FILE)
    (tmp_path / "adapter").mkdir()
    assert Tokenizer(tmp_path / "adapter", base).fingerprint() == Tokenizer(base).fingerprint()


def test_the_end_tokens_of_the_base_go_on_ending_replies(tmp_path):
    base = write(tmp_path / "base", generation_config={"eos_token_id": [3, 2]})
    assert Tokenizer(write(tmp_path / "adapter", {"eos_token": "<|pad|>"}), base).eos_ids == (0, 3, 2)
