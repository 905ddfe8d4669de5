"""Predictions of judges whose replies are known: a bigram decoder that says one sentence, whatever it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from taosr1.data.judgements import Judgement
from taosr1.evaluation.predict import Cost, before_and_after, dev_scores, greedy_replies, predict, predict_with_cost
from taosr1.evaluation.ranking import brier_score, expected_calibration_error
from taosr1.judge_model import JudgeModel
from taosr1.learning.checkpoint_weights import best_weights, start_weights
from taosr1.learning.distributed_model import DistributedModel
from taosr1.model.decoder import Decoder, DecoderConfig
from taosr1.model.io.weights import save_pretrained
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.runtime.files import new_folder
from taosr1.task.grades import GRADES
from taosr1.task.prompt import PromptConfig, encode_reply

# No token twice, so that each is followed by the next one only.
COT = "Query: tent\nItem: mug\nCategory: different\nAttributes: none\nDecision: 1-Irrelevant"
SENTENCES = {"label": "3", "pre-cot": COT, "post-cot": f"2\n{COT}"}
ROWS = [Judgement(f"tent {n}", "mug", grade=grade, query_id=f"q{n // 2}") for n, grade in enumerate((1, 2, 2, 3, 4, 1))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return train_tokenizer([f"{n} {COT}" for n in (1, 2, 3, 4)] * 20, 340, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def parrot(tokenizer) -> Callable[..., JudgeModel]:
    """parrot(order): a judge that always answers SENTENCES[order]; `text` lets it say something else."""

    def make(order: str, text: str | None = None) -> JudgeModel:
        size = tokenizer.vocab_size + tokenizer.vocab_size % 2
        shape = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 1)
        shape |= {"hidden_size": size, "intermediate_size": 2, "head_dim": 2, "max_position_embeddings": 128}
        model = Decoder(DecoderConfig(size, **shape, tie_word_embeddings=False))
        start = tokenizer.encode_trusted("<|assistant|>")
        chain = start + encode_reply(tokenizer, SENTENCES[order] if text is None else text)
        assert len(set(chain)) == len(chain), "a token twice"
        with torch.no_grad():
            for parameter in model.model.layers.parameters():
                parameter.zero_()
            model.model.norm.weight.fill_(1.0)
            model.model.embed_tokens.weight.copy_(torch.eye(size))
            model.lm_head.weight.zero_()
            for before, after in zip(chain, chain[1:]):
                model.lm_head.weight[after, before] = 1.0
        return JudgeModel(model, tokenizer, PromptConfig(order, "brief", ("title",)))

    return make


@pytest.mark.parametrize("order", ["label", "post-cot"])
def test_a_label_first_judge_answers_from_one_prefill(parrot, order):
    judge = parrot(order)
    found, cost = predict_with_cost(judge, ROWS)
    scored = judge.engine.label_probabilities(judge.model, judge.tokenizer, judge.prompts(ROWS))
    assert [prediction.grade for prediction in found] == [int(SENTENCES[order][0])] * 6
    assert cost == Cost(prefills=6, decoded_tok=0)
    assert [list(prediction.probs) for prediction in found] == scored.probs.tolist()
    assert [prediction.label_mass for prediction in found] == scored.label_mass.tolist()
    assert {prediction.decision for prediction in found} == {prediction.implied for prediction in found} == {None}


def test_explaining_decodes_the_reasons_beside_the_probabilities(parrot):
    judge = parrot("post-cot")
    found, cost = predict_with_cost(judge, ROWS, explain=True)
    # The label says 2, the reasoning 1.
    assert {(prediction.grade, prediction.decision, prediction.implied) for prediction in found} == {(2, 1, 1)}
    assert [prediction.probs for prediction in found] == [prediction.probs for prediction in predict(judge, ROWS)]
    assert cost == Cost(prefills=12, decoded_tok=6 * len(encode_reply(judge.tokenizer, SENTENCES["post-cot"])))
    label_only, cost = predict_with_cost(parrot("label"), ROWS, explain=True)
    assert cost == Cost(6, 0) and label_only == predict(parrot("label"), ROWS)


def test_a_judge_that_thinks_first_is_decoded_and_has_no_probabilities(parrot):
    judge = parrot("pre-cot")
    found, cost = predict_with_cost(judge, ROWS)
    assert {(p.grade, p.decision, p.implied, p.probs) for p in found} == {(1, 1, 1, None)}
    assert cost == Cost(6, 6 * len(encode_reply(judge.tokenizer, COT)))
    replies, rollouts = greedy_replies(judge, judge.prompts(ROWS), 96)
    assert all(reply.well_formed and reply.item == "mug" for reply in replies) and bool(rollouts.finished.all())


def test_a_reply_that_is_cut_or_says_nothing_has_no_grade_and_counts_as_wrong(parrot):
    cut = dev_scores(parrot("pre-cot"), ROWS, max_new_tokens=4)
    shares = {f"dev_share/{grade}": 0.0 for grade in GRADES}
    recalls = {f"dev_recall/{row.grade}": 0.0 for row in ROWS}
    assert cut == {"dev_macro_f1": 0.0, "dev_unparsed_frac": 1.0, **shares, **recalls}
    assert [prediction.grade for prediction in predict(parrot("pre-cot", "none"), ROWS)] == [None] * 6


def test_dev_scores_are_macro_f1_and_the_share_that_could_not_be_read(parrot):
    # Always grade 1 where 2 of 6 are: precision 1/3, recall 1, F1 1/2; the other three grades 0.
    scores = dev_scores(parrot("pre-cot"), ROWS)
    assert (scores["dev_macro_f1"], scores["dev_unparsed_frac"]) == (pytest.approx(0.125), 0.0)
    assert {name: value for name, value in scores.items() if "/" in name and value} == {
        "dev_share/1": 1.0, "dev_recall/1": 1.0
    }  # fmt: skip
    assert {name for name in scores if name.startswith("dev_recall")} == {f"dev_recall/{row.grade}" for row in ROWS}


def test_dev_scores_tell_how_calibrated_a_judge_is_that_answers_first(parrot):
    judge = parrot("post-cot")
    probs, gold = [prediction.probs for prediction in predict(judge, ROWS)], [row.grade for row in ROWS]
    scores = dev_scores(judge, ROWS)
    assert scores["dev_ece"] == pytest.approx(expected_calibration_error(probs, gold))
    assert scores["dev_brier"] == pytest.approx(brier_score(probs, gold))
    assert scores["dev_ece"] > 0.5 and scores["dev_brier"] > 1  # always 2, with a high probability
    masses = [prediction.label_mass for prediction in predict(judge, ROWS)]
    assert scores["dev_label_mass"] == pytest.approx(sum(masses) / len(ROWS)) and min(masses) > 0


def test_no_rows_cost_nothing(parrot):
    for order in SENTENCES:
        assert predict_with_cost(parrot(order), []) == ([], Cost())
    assert Cost(1, 2) + Cost(3, 4) == Cost(4, 6)


def test_before_and_after_compares_the_start_with_the_best_checkpoint_and_writes_it_down(parrot, tmp_path, capsys):
    start, judge = parrot("pre-cot").model, parrot("pre-cot", COT.replace("1-Irrelevant", "2-Mismatch"))
    folder = tmp_path / "checkpoints" / "step-000001"
    with new_folder(folder) as aside:
        save_pretrained(judge.model, judge.tokenizer, aside)
        judge.prompt.save(aside)
    later = parrot("pre-cot", "none")  # the weights at the end of the run, which are not its best
    rows = [row for row in ROWS if row.grade == 2]
    distributed = DistributedModel(later.model)
    contender = JudgeModel(later.model, judge.tokenizer, judge.prompt)
    first = start_weights(distributed, DistributedModel(start), "")
    weights = {"start": first, "result": best_weights(distributed, str(tmp_path))}
    found = before_and_after(contender, weights, str(tmp_path), rows)
    assert found["test_macro_f1_start"] == 0.0
    assert found["test_macro_f1_result"] == pytest.approx(found["test_high_result"]) and found["test_high_result"] > 0
    assert json.loads((tmp_path / "test.json").read_text(encoding="utf-8")) == found
    assert "test macro-F1 of the start: 0.0" in capsys.readouterr().out
    cut = before_and_after(judge, {"result": nullcontext(judge.model)}, str(tmp_path), rows, max_new_tokens=3)
    assert cut["test_macro_f1_result"] == 0.0  # replies are as long as the stage allowed
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["checkpoints", "test.json"]


def test_the_comparison_of_one_query_says_that_there_is_no_interval(parrot, tmp_path, capsys):
    judge = parrot("label", "4")
    rows = [Judgement("boots", f"title {grade}", grade=grade, query_id="q") for grade in (4, 4, 1)]
    found = before_and_after(judge, {"start": nullcontext(judge.model)}, str(tmp_path), rows)
    assert found["test_low_start"] is found["test_high_start"] is None
    assert "interval: none, there is one query" in capsys.readouterr().out
    stored = (tmp_path / "test.json").read_text(encoding="utf-8")
    assert json.loads(stored, parse_constant=pytest.fail) == found  # null, not NaN
