"""An explanation as it is decoded: its last event is what `explain` returns, and the others are its parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from taosr1 import fast
from taosr1.judge import Judge
from taosr1.serving.explain import explain
from taosr1.serving.stream import Explained, Scored, Step, Token, stream_explanation
from taosr1.synthetic.shop import read_pool

ROWS = read_pool("dev")
STEPS = ["query", "item", "category", "attributes", "decision"]


@pytest.mark.parametrize("plain", [False, True])
def test_the_last_event_is_what_explain_returns_and_the_others_are_its_parts(plain):
    judge = Judge.load("bundled", plain=plain)
    for row in ROWS[:300:25]:
        whole, events = judge.explain(row), list(judge.explain_stream(row))
        assert events[-1] == Explained(whole)
        first = events[0]
        assert isinstance(first, Scored)
        assert (first.score.probs, first.score.outside, first.score.tier) == (whole.probs, whole.outside, whole.tier)
        assert "".join(event.text for event in events if isinstance(event, Token)) == whole.reply
        steps = [event for event in events if isinstance(event, Step)]
        assert [(step.name, step.text) for step in steps] == [(name, getattr(whole, name)) for name in STEPS]


def test_a_step_comes_as_soon_as_its_line_is_complete():
    said = ""
    for event in Judge.load("bundled").explain_stream(ROWS[0]):
        if isinstance(event, Token):
            said += event.text
        elif isinstance(event, Step) and event.name != "decision":
            assert said.count("\n") == 2 + STEPS.index(event.name)


@pytest.mark.parametrize("order", ["label", "post-cot", "pre-cot"])
@pytest.mark.parametrize("shape", [{}, {"sliding_window": 9}, {"qk_norm": False}])
@pytest.mark.parametrize("quick", [False, True])
def test_replies_without_any_form_are_streamed_as_explain_decodes_them(order, shape, quick, make_judge, scramble):
    """Random weights: replies are noise, are cut at their limit, and have characters whose bytes are several tokens."""
    judge = make_judge(order, **shape)
    scramble(judge.model, 3)
    judge = fast.enable(judge) if quick else judge
    for row in ROWS[:6]:
        settings = {"beta": 0.5, "temperature": 1.3, "max_new_tokens": 24}
        whole, events = explain(judge, row, **settings), list(stream_explanation(judge, row, **settings))
        found = events[-1].explanation
        if whole.probs:  # without exact equality: random weights are so large that rounding shows
            assert found.probs == pytest.approx(whole.probs, abs=1e-5)
            same = {name: getattr(whole, name) for name in ("probs", "score", "label_mass")}
            found = dataclasses.replace(found, **same)
        assert found == whole
        assert "".join(event.text for event in events if isinstance(event, Token)) == whole.reply
        assert isinstance(events[0], Token if order == "pre-cot" else Scored)
        assert len(events) == 2 if order == "label" else len(events) > 2


def test_a_character_of_several_tokens_is_told_once_it_is_whole():
    judge = Judge.load("bundled")
    ids = judge.model.tokenizer.encode_text("4\nQuery: \u6c34\u676f \U0001f600\n")
    ids = [*ids, judge.model.tokenizer.eos_ids[0]]
    size, later = judge.model.tokenizer.vocab_size, iter(ids[1:])

    def step(token: int) -> torch.Tensor:
        logits = torch.zeros(size)
        logits[next(later)] = 9.0
        return logits

    first = torch.zeros(size)
    first[ids[0]] = 9.0
    engine = dataclasses.replace(judge.model.engine, decode=lambda *_: (first, step))
    told = list(stream_explanation(dataclasses.replace(judge.model, engine=engine), ROWS[0], beta=0.5))
    texts = [event.text for event in told if isinstance(event, Token)]
    assert len(texts) == len(ids) and not any("\ufffd" in text for text in texts)
    assert "".join(texts) == "4\nQuery: \u6c34\u676f \U0001f600\n"


def test_weights_that_give_nan_are_said_and_not_streamed(make_judge):
    judge = make_judge()
    with torch.no_grad():
        judge.model.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        list(stream_explanation(judge, ROWS[0], beta=0.5))
