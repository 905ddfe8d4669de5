"""Chat templates: what transformers' environment offers, and prompts that end where the reply begins.

The templates are those of TRL, where it is installed, and small ones written here, each with one peculiarity.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from taosr1.judge_model import BUNDLED_FOLDER
from taosr1.model.chat_template import PINNED_DATE, closing_of_thought
from taosr1.model.tokenizer import Tokenizer
from taosr1.runtime.messages import say_once
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import PromptConfig, encode_prompt

USER = [{"role": "user", "content": "a mug, not plastic"}]
TURNS = [{"role": "system", "content": "Be brief."}, *USER, {"role": "assistant", "content": "4"}, USER[0]]
ROW = Judgement("mug \"not\" 'plastic' <b>", "Steel & co \\ travel mug ", brand="Hollin", price="$16")
GENERATION = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
SHOW = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"


def folder_with(template: str, folder: Path, **names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUNDLED_FOLDER / "tokenizer.json", folder)
    config = json.loads((BUNDLED_FOLDER / "tokenizer_config.json").read_text())
    config |= {"chat_template": template, "bos_token": "<|pad|>", "unk_token": "<|pad|>", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


class PinnedClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return PINNED_DATE


@pytest.fixture
def theirs(transformers, monkeypatch):
    """theirs(folder): its AutoTokenizer, with the clock that our templates see."""
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", PinnedClock)
    return transformers.AutoTokenizer.from_pretrained


OPTIONS = {"add_generation_prompt": True, "enable_thinking": False}

# --- what a template may use ------------------------------------------------------------------------------------------

OFFERED = {
    "generation": "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% endif %}{% endfor %}" + GENERATION,
    "generation with white space": "{%- for m in messages -%}\n  {%- generation -%}\n  {{ m.content }}\n"
    "  {%- endgeneration -%}\n  {% endfor %}\n" + GENERATION,
    "generation that sets": "{% set ns = namespace(n=0) %}{% for m in messages %}{% generation %}{% set x = 1 %}"
    "{% set ns.n = ns.n + 1 %}{% endgeneration %}{{ ns.n }}{{ x is defined }}{{ m.content }}{% endfor %}" + GENERATION,
    "a clock, asked for": "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024"
    "{% endif %}" + SHOW + GENERATION,
    "a clock, used": "{%- set day = strftime_now('%Y-%m-%d %A %H:%M') %}{{ day }}" + SHOW + GENERATION,
    "a clock in a loop": "{% for f in ['%B', '%-d', '%y'] %}{{ strftime_now(f) }}{% endfor %}" + SHOW + GENERATION,
    "tojson": "{{ {'b': 'é<&>', 'a': [1, none, true]} | tojson }}{{ [1, {'x': 2}] | tojson(indent=2) }}"
    "{{ {'b': 1, 'a': 'é'} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}" + SHOW + GENERATION,
    "loop controls": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}<|user|>"
    "{{ m.content }}{% if loop.index > 3 %}{% break %}{% endif %}{% endfor %}" + GENERATION,
    "namespace and dict": "{% set ns = namespace(last='') %}{% for m in messages %}{% set ns.last = m.content %}"
    "{% endfor %}{{ dict(a=ns.last)['a'] }}" + GENERATION,
    "macros and slices": "{%- macro show(m) -%}<|{{ m.role }}|>{{ m['content'] }}{%- endmacro -%}"
    "{% for m in messages[:-1] %}{{ show(m) }}{% endfor %}{{ show(messages[-1]) }}" + GENERATION,
    "what is not given": "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ date_string is defined }}"
    "{{ thinking is defined }}{{ mask_token is defined }}{% if documents %}x{% endif %}" + SHOW + GENERATION,
    "named tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ sep_token }}{{ image_token }}" + SHOW + GENERATION,
    "a system message merged": "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ system if loop.first }}{{ m.content }}{% endfor %}" + GENERATION,
    "text or parts": "{% for m in messages %}<|user|>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}" + GENERATION,
    "strings' methods": "{% for m in messages %}{{ m.role.upper() ~ m.content.strip().replace('x', 'y') }}"
    "{{ m.content.split(' ') | length }}{{ m.get('name', '-') }}{{ m.content.startswith('<t>') }}{% endfor %}"
    + GENERATION,
}


@pytest.mark.parametrize("kind", OFFERED)
def test_a_template_sees_what_transformers_shows_it(kind, theirs, tmp_path):
    folder = folder_with(OFFERED[kind], tmp_path, sep_token="<|user|>", image_token="<|assistant|>")
    ours = Tokenizer(folder)
    for messages in (USER, TURNS):
        assert ours.render_prompt(messages) == theirs(folder).apply_chat_template(messages, tokenize=False, **OPTIONS)


def test_the_date_of_a_prompt_never_changes(tmp_path):
    ours = Tokenizer(folder_with(OFFERED["a clock, used"], tmp_path))
    assert ours.render_prompt(USER).startswith("2024-07-26 Friday 00:00<|user|>")


def test_a_named_token_that_no_file_names_is_undefined_as_in_transformers(tmp_path):
    template = "{{ mask_token is defined }}{{ mask_token }}{{ 'x' + mask_token }}"
    with pytest.raises(ValueError, match="'mask_token' is undefined"):
        Tokenizer(folder_with(template, tmp_path)).render_prompt(USER)


# --- where the reply begins -------------------------------------------------------------------------------------------

OPEN = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
THOUGHTS = {
    "Qwen3-Thinking": ("\n<think>\n", "\n<think>\n\n</think>\n\n"),
    "on one line": ("<think>", "<think>\n\n</think>\n\n"),
    "with a name space": ("<seed:think>\n", "<seed:think>\n\n</seed:think>\n\n"),
    "reasoning": ("<reasoning>\n", "<reasoning>\n\n</reasoning>\n\n"),
    "Command": ("<|START_THINKING|>", "<|START_THINKING|>\n\n<|END_THINKING|>\n\n"),
    "Magistral": ("[THINK]", "[THINK]\n\n[/THINK]\n\n"),
    "a thought that has begun": ("<think>\nAlright, ", "<think>\nAlright, \n</think>\n\n"),
    "capitals": ("<Thinking>\n", "<Thinking>\n\n</Thinking>\n\n"),
    "two words": ("<deep_thoughts>", "<deep_thoughts>\n\n</deep_thoughts>\n\n"),
    "a second one": ("<think>\n</think><reflection>\n", "<think>\n</think><reflection>\n\n</reflection>\n\n"),
}


@pytest.mark.parametrize("family", THOUGHTS)
def test_a_thought_that_is_left_open_is_closed_and_said_once(family, tmp_path, capsys):
    say_once.cache_clear()
    end, closed = THOUGHTS[family]
    ours = Tokenizer(folder_with(OPEN + end + "{% endif %}", tmp_path))
    for _ in range(2):
        # Jinja drops the line break behind a block's tag, not one inside the text.
        assert ours.render_prompt(USER) == f"<|user|>a mug, not plastic<|end|><|assistant|>{closed}"
    assert capsys.readouterr().err.count("ends in an open thought") == 1
    assert ours.render_prompt(USER, enable_thinking=True).endswith(end)


@pytest.mark.parametrize(
    "end",
    ["<|begin_thinking|>\n", "<|channel|>analysis<|message|>", "<unused7>thought\n", "<reasoning_start>", "{thinking}",
     "<|assistant|><|Thought|>", "[REASON]\n"],
)  # fmt: skip
def test_an_open_thought_of_an_unknown_family_is_refused(end, tmp_path):
    ours = Tokenizer(folder_with(OPEN + end + "{% endif %}", tmp_path))
    with pytest.raises(ValueError, match="begins every reply with a thought .* this family closes one is not known"):
        ours.render_prompt(USER)
    assert ours.render_prompt(USER, enable_thinking=True).endswith(end)


def test_a_tag_in_the_message_or_before_it_opens_no_thought(tmp_path, capsys):
    say_once.cache_clear()
    ours = Tokenizer(folder_with("<|think|>" + SHOW + GENERATION, tmp_path))
    rendered = ours.render_prompt([{"role": "user", "content": "a mug <think>"}])
    assert rendered == "<|think|><|user|>a mug <think><|end|><|assistant|>"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "end",
    ["<|assistant|>", "<think>\n\n</think>\n\n", "</think>", "I think", "think>", "<b>", "",
     "<|thought|><|end_thought|>",
     "<|channel>thought\n<channel|>", "<nothink>", "<think/>", "[THINK][/THINK]", "<reason_start><reason_end>",
     "<|assistant|>Reasoning: none\n"],
)  # fmt: skip
def test_other_ends_of_a_prompt_are_no_open_thought(end):
    assert closing_of_thought(end) == ""


def test_a_template_that_closes_its_thought_itself_is_left_alone(tmp_path, capsys):
    say_once.cache_clear()
    switch = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>{% endif %}"
    ours = Tokenizer(folder_with(OPEN + switch + "{% endif %}", tmp_path))
    assert ours.render_prompt(USER).endswith("<|assistant|><think></think>")
    assert capsys.readouterr().err == ""


ROLES = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
LOST = {  # templates without a generation prompt, and what their prompt must end in
    "the role's token": ("{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}"
                         "{{ m.content }}<|end|>{% endfor %}", "plastic<|end|><|assistant|>"),
    "ChatML": (ROLES, "plastic<|end|>\n<|im_start|>assistant\n"),
    "a role in words": ("{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}",
                        "User: a mug, not plastic\nAssistant: "),
    "an end token behind all": ("{% for m in messages %}<|user|>{{ m.content }}\n{% if not loop.last %}<|assistant|>"
                                "{% endif %}{% endfor %}{{ eos_token }}", "plastic\n<|assistant|><|user|>"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_a_lost_generation_prompt_is_what_the_template_writes_before_a_reply(kind, tmp_path, capsys):
    say_once.cache_clear()
    template, end = LOST[kind]
    ours = Tokenizer(folder_with(template, tmp_path))
    assert ours.render_prompt(USER).endswith(end)
    assert "has no generation prompt (add_generation_prompt changes nothing)" in capsys.readouterr().err
    # Exactly what training on whole conversations of this template puts before the reply.
    whole = ours.render_prompt([*USER, {"role": "assistant", "content": "REPLY"}, USER[0]])
    assert whole.startswith(ours.render_prompt(USER) + "REPLY")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}"
        "{{ eos_token }}{% endif %}{% endfor %}",  # Mistral, Llama 2: the reply follows at once
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",  # DialoGPT
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}Q: {{ m.content }} A:{% endfor %}",  # never shows a reply
    ],
)
def test_a_template_that_opens_no_reply_with_words_is_rendered_as_it_is(template, theirs, tmp_path, capsys):
    say_once.cache_clear()
    folder = folder_with(template, tmp_path)
    expected = theirs(folder).apply_chat_template(USER, tokenize=False, **OPTIONS)
    assert Tokenizer(folder).render_prompt(USER) == expected
    assert capsys.readouterr().err == ""


def test_a_reply_whose_header_is_left_to_the_model_is_refused(tmp_path):
    channel = ("{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}<|end|>{% else %}<|assistant|>"
               "<|channel|>final<|message|>{{ m.content }}{% endif %}{% endfor %}" + GENERATION)  # fmt: skip
    ours = Tokenizer(folder_with(channel, tmp_path))
    with pytest.raises(ValueError, match=r"begins every reply with '<\|channel\|>final<\|message\|>', which its gener"):
        ours.render_prompt(USER)


# --- the user's message, as it is -------------------------------------------------------------------------------------

WRAP = "{% for m in messages %}<|user|>[%s]{% endfor %}" + GENERATION
SAME = ["{{ m.content }}", "{{ m['content'] }}", "{{- m.content | trim -}}", " {{ m.content.strip() }}",
        "{{ m.content.lstrip() }}", "{{ m.content.rstrip() + '\\n' }}",
        "{% for p in m.content %}{{ p.text }}{% endfor %}",
        "{% for p in m.content if p.type == 'text' %}{{ p['text'] | trim }}{% endfor %}"]  # fmt: skip
ALTERED = ["{{ m.content | upper }}", "{{ m.content.lower() }}", "{{ m.content | tojson }}", "{{ m.content | e }}",
           "{{ m.content | replace('\"', '') }}", "{{ m.content.split() | join(' ') }}", "{{ m.content | title }}",
           "{{ m.content | urlencode }}", "{{ m.content[:40] }}", "{{ m.content | replace('\\\\', '/') }}",
           "{{ m.content[:1500] }}", "{{ m.content | truncate(900) }}", "{{ m.content | replace('mug', 'cup') }}",
           "{% if m.content | length < 1200 %}{{ m.content }}{% else %}{{ m.content }}{{ ' (long)' }}{% endif %}",
           "{{ m.content | replace('%', ' percent') }}", "{{ m.content }}{{ m.content | length > 2000 }}",
           "{% if '$' in m.content %}Price: {% endif %}{{ m.content }}", "{{ m.content | replace('_', ' ') }}",
           "{{ m.content | list | join(' ') }}", "{{ m.content.encode('ascii', 'ignore').decode() }}"]  # fmt: skip


@pytest.mark.parametrize("style", ["brief", "full"])
@pytest.mark.parametrize("shown", SAME)
def test_a_message_that_is_shown_as_it_is_gives_the_ids_of_transformers(shown, style, theirs, tmp_path):
    """Trimmed messages too: what transformers trims of the whole message is trimmed of the text at its edge."""
    folder = folder_with(WRAP.replace("%s", shown), tmp_path)
    config = PromptConfig("label", style, ("title", "price") if style == "brief" else ("brand", "title"))
    message = Tokenizer(BUNDLED_FOLDER).decode(encode_prompt(Tokenizer(BUNDLED_FOLDER), ROW, config))
    content = message.removeprefix("<|user|>").removesuffix("<|assistant|>")
    content = [{"type": "text", "text": content}] if "for p in" in shown else content
    expected = theirs(folder).apply_chat_template([{"role": "user", "content": content}], return_dict=False, **OPTIONS)
    ours = Tokenizer(folder)
    ids = encode_prompt(ours, ROW, config)
    assert ours._trusted.decode(ids, skip_special_tokens=False) == ours._trusted.decode(
        expected, skip_special_tokens=False
    )
    assert ids == expected


@pytest.mark.parametrize(
    "template", [SHOW, SHOW.replace("|>{{", "|>\n{{"), SHOW.replace("|>{{", "|> {{"), SHOW.replace("}}<", "}} \n<")]
)
@pytest.mark.parametrize("flags", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_control_tokens_that_take_the_white_space_beside_them_do_so_at_the_message_too(
    flags, template, theirs, tmp_path
):
    """As those of Phi-3 do."""
    names = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
    listed = {str(n): {"content": name, "special": True, **flags} for n, name in enumerate(names)}
    folder = folder_with(template + GENERATION, tmp_path, added_tokens_decoder=listed)
    ours, reference = Tokenizer(folder), theirs(folder)
    for row in (ROW, Judgement("mug", "steel mug")):
        message = [{"role": "user", "content": f" {row.query}\n {row.title.strip()}"}]
        ids = encode_prompt(ours, row, PromptConfig("label", "brief", ("title",)))
        assert ids == reference.apply_chat_template(message, return_dict=False, **OPTIONS)


@pytest.mark.parametrize("shown", ALTERED)
def test_a_template_that_alters_the_message_is_refused(shown, tmp_path):
    ours = Tokenizer(folder_with(WRAP.replace("%s", shown), tmp_path))
    for config in (PromptConfig("label"), PromptConfig("label", "brief", ("title",))):
        with pytest.raises(ValueError, match="alters the message|times, expected once|failed"):
            encode_prompt(ours, ROW, config)


# --- the templates that TRL ships -------------------------------------------------------------------------------------

TRL = importlib.util.find_spec("trl")
SHIPPED = sorted(Path(TRL.origin).parent.glob("chat_templates/*.jinja")) if TRL else []
# Not rendered as transformers renders them, and why.
REFUSED = dict.fromkeys(("gptoss", "gptoss_training", "muse_glimmer", "muse_glimmer_training"), "leaves to the model")
CLOSED = {"deepseek_r1_distill", "deepseek_r1_distill_training", "deepseekv3", "deepseekv3_training"}  # a <think>
PARTS = ("idefics3", "llava_next", "smolvlm")  # show a message only where its content is a list of parts


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_template_of_trl_renders_as_transformers_renders_it(path, theirs, tmp_path):
    pytest.importorskip("trl", reason="the templates are those of trl (pip install .[dev])")
    folder = folder_with(path.read_text(encoding="utf-8"), tmp_path)
    ours, text = Tokenizer(folder), ' a mug, "not" <plastic>\n Hollin\'s mug'
    content = [{"type": "text", "text": text}] if path.stem.startswith(PARTS) else text
    messages = [{"role": "user", "content": content}]
    if path.stem in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[path.stem]):
            ours.render_prompt(messages)
        return
    expected = theirs(folder).apply_chat_template(messages, tokenize=False, **OPTIONS)
    closing = "\n</think>\n\n" if path.stem in CLOSED else ""
    assert ours.render_prompt(messages) == expected + closing
    # And a row's prompt is that of the same message, its query and title encoded as text.
    row = Judgement('a mug, "not" <plastic>', "Hollin's mug")
    ids = encode_prompt(ours, row, PromptConfig("label", "brief", ("title",)))
    assert ours._trusted.decode(ids, skip_special_tokens=False) == expected + closing


def test_trl_ships_the_templates_that_were_looked_at():
    pytest.importorskip("trl", reason="the templates are those of trl (pip install .[dev])")
    names = {path.stem for path in SHIPPED}
    assert len(names) >= 72 and names >= {*REFUSED, *CLOSED}
