"""Rules in the prompt: which are shown and where, a rule book of one's own, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from taosr1.judge_model import BUNDLED_FOLDER
from taosr1.model.tokenizer import Tokenizer
from taosr1.task import prompt, prompt_config, prompt_rules
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import PromptConfig, check_prompt, encode_prompt, marked_prompt, prompt_pieces
from taosr1.task.prompt_flags import PromptFlags, prompt_asked
from taosr1.task.prompt_rules import read_book
from taosr1.task.rules import load_rules, retrieve

BOOTS = Judgement("suede ankle boots not leather", "Kestro leather boots", category="Shoes", description="warm")
WITH = PromptConfig("label", fields=("title",), prompt_rules=3)
WITHOUT = replace(WITH, prompt_rules=0)
RULE = {
    "id": "a", "applies_to": ["any"], "condition": "The boots are leather.", "consequence": "No suede.",
    "when": {}, "grade": None, "example": {"query": "suede boots", "title": "leather boots", "grade": 3},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(BUNDLED_FOLDER)


def write(path, *rules: dict) -> str:
    path.write_text("".join(json.dumps(rule) + "\n\n" for rule in rules), encoding="utf-8")
    return str(path)


def test_the_retrieved_rules_stand_in_the_books_order_in_trusted_text_before_the_query(tokenizer):
    rules = load_rules()
    found = retrieve(BOOTS.query, BOOTS.title, BOOTS.category, rules, 3)
    assert [rules.index(rule) for rule in found] != sorted(map(rules.index, found))  # the best first is another order
    lines = "".join(f"\n- {rule.text}" for rule in sorted(found, key=rules.index))
    (head, untrusted), query, *_ = marked_prompt(tokenizer, BOOTS, WITH)
    assert not untrusted and query == (f" {BOOTS.query}", True)
    assert head.partition("Rules:")[2] == f"{lines}\n\nQuery:"
    assert prompt_pieces(tokenizer, BOOTS, WITH)[1:] == prompt_pieces(tokenizer, BOOTS, WITHOUT)[1:]


def test_the_rules_of_a_pair_depend_on_its_category_though_it_is_not_shown_and_not_on_the_end_of_long_texts(tokenizer):
    assert WITH.columns == ("title", "category") and WITHOUT.columns == ("title",)
    row = replace(BOOTS, query="waterproof hiking boots")
    other = replace(row, category="Kitchen")
    assert encode_prompt(tokenizer, row, WITH) != encode_prompt(tokenizer, other, WITH)
    assert encode_prompt(tokenizer, row, WITHOUT) == encode_prompt(tokenizer, other, WITHOUT)
    long = replace(BOOTS, title=BOOTS.title + " x" * 300)
    longer = replace(long, title=f"{long.title} kettle")
    assert encode_prompt(tokenizer, long, WITH) == encode_prompt(tokenizer, longer, WITH)


def test_the_template_is_encoded_once_however_many_rules_there_are(tokenizer):
    encode_prompt(tokenizer, BOOTS, WITH)
    before = prompt._template_pieces.cache_info().misses
    heads = {tuple(prompt_pieces(tokenizer, replace(BOOTS, query=f"{word} boots"), WITH)[0])
             for word in ("suede", "red", "waterproof", "plastic")}  # fmt: skip
    assert len(heads) == 4 and prompt._template_pieces.cache_info().misses == before


def test_a_rule_book_of_ones_own_comes_back_from_the_folder_and_is_part_of_the_version(tmp_path, tokenizer):
    path = write(tmp_path / "own.jsonl", RULE, {**RULE, "id": "b", "consequence": "Two\nlines."})
    book = read_book(path)
    own = replace(WITH, prompt_rules=2, rules=book)
    own.save(tmp_path)
    assert PromptConfig.load(tmp_path) == own
    head = marked_prompt(tokenizer, BOOTS, own)[0][0]
    assert "Rules:\n- The boots are leather. -> No suede.\n- The boots are leather. -> Two lines.\n\nQuery:" in head
    changed = [{**RULE, "consequence": "x"}, {**RULE, "applies_to": ["home"]},
               {**RULE, "example": {**RULE["example"], "query": "x"}}]  # fmt: skip
    books = [book, *(read_book(write(tmp_path / "own.jsonl", rule, {**RULE, "id": "b"})) for rule in changed)]
    asked = [WITHOUT, WITH, replace(WITH, prompt_rules=2), *(replace(own, rules=text) for text in books)]
    assert len({config.wording_sha256 for config in asked}) == len(asked)
    assert len({repr(config) for config in asked}) == len(asked)


def test_our_own_rule_book_is_part_of_the_version_only_where_a_prompt_shows_it(monkeypatch):
    before = WITH.wording_sha256, WITHOUT.wording_sha256
    rules = load_rules()
    rules[-1] = replace(rules[-1], consequence="Another.")
    monkeypatch.setattr(prompt_rules, "load_rules", lambda: rules)
    prompt_rules.rule_book.cache_clear()
    try:
        after = [replace(config).wording_sha256 for config in (WITH, WITHOUT)]
    finally:
        prompt_rules.rule_book.cache_clear()
    assert after[0] != before[0] and after[1] == before[1]


def test_the_form_of_the_evidence_is_part_of_the_version_where_evidence_is_shown(monkeypatch):
    shown, line = PromptConfig(fields=("title", "evidence")), prompt_config.evidence_line
    assert {outcome for pair in prompt_config._EVIDENCE_SAMPLES for outcome in ("met", "near", "missed", "unknown")
            if f": {outcome}" in line(pair)} == {"met", "near", "missed", "unknown"}  # fmt: skip
    for form in ("not handle", "price at most", "in title as accessory", "elsewhere"):
        with monkeypatch.context() as changed:
            changed.setattr(prompt_config, "evidence_line", lambda row, form=form: line(row).replace(form, "x"))
            assert replace(shown).wording_sha256 != shown.wording_sha256, form
            assert replace(WITHOUT).wording_sha256 == WITHOUT.wording_sha256


def test_flags_give_the_rules_and_the_next_stage_can_leave_them_out(tmp_path, capsys):
    path = write(tmp_path / "own.jsonl", RULE)
    asked = prompt_asked("folder", None, PromptFlags(prompt_rules=1, rules=path))
    assert asked == PromptConfig(prompt_rules=1, rules=read_book(path))
    with pytest.raises(ValueError, match="--model run was trained with --prompt-rules 1: leave --prompt-rules out"):
        prompt_asked("run", replace(asked, rules=""), PromptFlags(prompt_rules=2))
    assert prompt_asked("run", asked, PromptFlags(prompt_rules=0), order="label") == PromptConfig("label")
    assert "trained with --prompt-rules 1, --rules" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        ([RULE, {**RULE, "id": "b", "grade": 5}], {}, r"--rules .*own.jsonl:3: field 'grade' is 5, expected 1-4"),
        ([RULE, RULE], {}, r"own.jsonl:3: field 'id' repeats 'a' of line 1"),
        ([], {}, "own.jsonl: no rules in this file"),
        ([{**RULE, "condition": "x" * 200_001}], {}, "own.jsonl: more than 200,000 characters"),
        ([RULE], {"prompt_rules": 2}, "--prompt-rules is 2, but the rule book has 1 rules"),
        ([RULE], {"prompt_rules": 0}, "--rules needs --prompt-rules K"),
        (None, {"prompt_rules": 21}, "--prompt-rules is 21, expected 0 to 20"),
        (None, {"prompt_rules": -1}, "--prompt-rules is -1, expected 0 to 20"),
        (None, {"style": "brief"}, "--prompt-rules needs --style full"),
    ],
)
def test_what_is_no_rule_book_or_does_not_fit_is_named_in_one_line(tmp_path, rules, settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        book = "" if rules is None else read_book(write(tmp_path / "own.jsonl", *rules))
        replace(WITHOUT, **{"prompt_rules": 1, "rules": book, **settings})
    assert "\n" not in str(refused.value)


def test_a_rule_that_spells_a_control_token_is_refused_and_would_be_ordinary_text(tmp_path, tokenizer):
    book = read_book(write(tmp_path / "own.jsonl", {**RULE, "consequence": "Say <|assistant|>."}))
    config = replace(WITH, prompt_rules=1, rules=book)
    with pytest.raises(ValueError, match=r"rule 'a' holds '<\|assistant\|>', .* leave it out of --rules"):
        check_prompt(tokenizer, config, 1024)
    control = [[token for token in encode_prompt(tokenizer, BOOTS, asked) if token in tokenizer.control_ids]
               for asked in (config, WITHOUT)]  # fmt: skip
    assert control[0] == control[1]


def test_a_budget_counts_the_rules_and_too_many_are_refused_with_the_numbers(tokenizer):
    with pytest.raises(ValueError, match=r"the 3 longest rules, .* at least \d+, fewer --prompt-rules") as said:
        check_prompt(tokenizer, replace(WITH, max_prompt_tok=20), 4096)
    needed = int(str(said.value).partition("at least ")[2].partition(",")[0])
    config = replace(WITH, max_prompt_tok=needed)
    check_prompt(tokenizer, config, 4096)
    long = replace(BOOTS, title="word " * 200, description="word " * 200)
    assert needed - 8 <= len(encode_prompt(tokenizer, long, config)) <= needed
    with pytest.raises(ValueError, match="but this model has room for 384: give fewer --prompt-rules"):
        check_prompt(tokenizer, WITH, 512)
