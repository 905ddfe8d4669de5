"""`from taosr1 import Judge`: the scores of infer/score.py, in Python, and a message for every input it cannot read."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import taosr1
from infer.explain import main as explain_script
from infer.score import main as score_script
from taosr1 import Judge
from taosr1.data.judgements import Judgement, read_judgements, write_judgements
from taosr1.judge import Ranked, Sample, Score
from taosr1.runtime.jsonl import read_jsonl
from taosr1.serving.deployed import store_beta, store_temperature
from taosr1.synthetic.shop import read_pool

TITLES = ["steel travel mug", "LED desk lamp", "suede hiking boots"]


@pytest.fixture(scope="module")
def taught(taught_judge) -> Judge:
    return Judge.load(taught_judge("post-cot"))


@pytest.fixture(scope="module")
def thinker(taught_judge) -> Judge:
    return Judge.load(Path(taught_judge("pre-cot")))


@pytest.fixture(scope="module")
def fresh(fresh_judge) -> Judge:
    return Judge.load(fresh_judge("post-cot"))


def test_it_is_the_packages_front_door_and_carries_its_types():
    assert taosr1.Judge is Judge and "Judge" in taosr1.__all__
    assert (Path(taosr1.__file__).parent / "py.typed").exists()


# ---- Scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, beta", [(None, None), (0.4, 0.3), (2.5, 0.7)])
def test_scores_are_those_of_the_script_with_the_checkpoints_beta_and_temperature(
    fresh_judge, tmp_path, temperature, beta
):
    """1,100 rows: more than one chunk."""
    folder = fresh_judge("post-cot")
    stored = [store_temperature(folder, temperature), store_beta(folder, beta, temperature)] if beta else []
    rows = read_pool("labelled", 1100)
    write_judgements(tmp_path / "rows.jsonl", rows)
    try:
        files = ["--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "s.jsonl")]
        summary = score_script(["--model", folder, *files])
        judge = Judge.load(Path(folder))
    finally:
        for path in stored:
            path.unlink()
    assert (judge.beta, judge.temperature) == (beta or 0.5, temperature or 1)
    assert (summary["beta"], summary["temperature"]) == (judge.beta, judge.temperature)
    written = [row for _, row in read_jsonl(tmp_path / "s.jsonl")]
    for score, row in zip(judge.score(rows), written, strict=True):
        assert (score.grade, score.tier) == (row["pred_grade"], row["tier"])
        assert [round(value, 6) for value in score.probs] == row["probs"]
        assert (round(score.label_mass, 6), round(score.score, 6)) == (row["label_mass"], row["score"])


def test_strings_dicts_and_judgements_are_the_same_product(fresh):
    product = {"title": "LED desk lamp", "price": "$49"}
    expected = fresh.score(Judgement("desk lamp", "LED desk lamp", price="$49"))
    given = [
        fresh.score("desk lamp", product),
        fresh.score("desk lamp", {**product, "colour": "red", "grade": "Exact", "cot": None, "brand": float("nan")}),
        fresh.score("desk lamp", {"Product_Name": "LED desk lamp", "item_price": "$49"}),  # as readers know them
        fresh.score({"search_term": "desk lamp", **product}),
        fresh.score(("desk lamp", product)),
        fresh.score(["desk lamp", product]),
        fresh.score({**product, "query": "desk lamp"}),
        fresh.score("desk lamp", Judgement("", "LED desk lamp", price="$49", grade=1)),
        fresh.score("desk lamp", Judgement("desk lamp", "LED desk lamp", price="$49")),
    ]
    assert given == [expected] * 9 and isinstance(expected, Score)
    plain = fresh.score("desk lamp", "LED desk lamp")
    assert plain == fresh.score(Judgement("desk lamp", "LED desk lamp")) != expected


SEVERAL = {
    "tuple": tuple,
    "generator": lambda titles: (title for title in titles),
    "array of text": np.array,
    "array of objects": lambda titles: np.array(titles, dtype=object),
    "dict's values": lambda titles: dict(enumerate(titles)).values(),
    "dicts": lambda titles: [{"title": title} for title in titles],
    "arrays of pairs": lambda titles: [np.array(["q", title]) for title in titles],
}


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL.keys())
def test_anything_with_an_order_may_hold_the_products_or_pairs(fresh, make):
    pairs = make is SEVERAL["arrays of pairs"]
    found = fresh.score(np.array(make(TITLES))) if pairs else fresh.score("q", make(TITLES))
    expected = fresh.score([("q", title) for title in TITLES])
    assert [score.grade for score in found] == [score.grade for score in expected]
    assert [score.score for score in found] == pytest.approx([score.score for score in expected], abs=1e-6)
    assert fresh.score("q", make([])) == fresh.score(make([])) == []


def test_rows_of_a_data_frame_are_products_or_pairs(fresh):
    pandas = pytest.importorskip("pandas", reason="rows of data frames need pandas (it comes with .[dev])")
    frame = pandas.DataFrame({"query": ["a", "b"], "title": ["x", "y"], "price": [19.5, None], "n": [1, 2]})
    expected = fresh.score([("a", {"title": "x", "price": "19.5"}), ("b", "y")])
    assert fresh.score(frame) == expected
    assert fresh.score("a", frame[["title", "price"]]) == fresh.score("a", [{"title": "x", "price": "19.5"}, "y"])
    assert fresh.score("a", frame["title"]) == fresh.score("a", ["x", "y"])


# method, arguments, message
BAD = [
    ("score", ([("a", "b"), ("a", "c"), ("a", "d"), (" ", "e")],), "pair 3: query is empty"),
    ("score", ([("a", "b"), (None, "c")],), "pair 1: query is None, expected text"),
    ("score", ([Judgement("a", "b"), Judgement("", "c")],), "pair 1: query is empty"),
    ("score", ([{"query": "a", "title": "b"}, {"title": "c"}],), "pair 1: query is missing; the pair has"),
    ("score", ([("a", "b", "c")],), r"pair 0: \('a', 'b', 'c'\) of type tuple, expected \(query, product\)"),
    ("score", (["a", "b", "c"],), r"pair 0: 'a' of type str.*score\(query, products\)"),
    ("score", ("a",), "products are missing: score"),
    ("score", (7,), "pairs: 7 of type int, expected"),
    ("score", ("", "b"), "^query is empty"),
    ("score", (b"a", ["b"]), "query is b'a', expected text"),
    ("score", ("a", ["b", None]), "product 1: None, expected a title"),
    ("score", ("a", [float("nan")]), "product 0: nan of type float, expected a title"),
    ("score", ("a", ["b", b"c"]), r"product 1: b'c' of type bytes \(decode it first\), expected a title"),
    ("score", ("a", ["b", True]), "product 1: True of type bool, expected a title"),
    ("score", ("a", ["b", ["c"]]), r"product 1: \['c'\] of type list, expected a title"),
    ("score", ("a", ["b", " "]), "product 1: nothing is said about the product"),
    ("score", ("a", [{"colour": "b"}]), "product 0: field 'title' is missing; the row has 'colour', 'query'"),
    ("score", ("a", [{"title": "b", "price": {"eur": 3}}]), "product 0: field 'price' is"),
    ("score", ("a", [{"title": "b", "query": "c"}]), "product 0: its own query is 'c', but 'a' was given"),
    ("score", ("a", {"b", "c"}), "products are a set, which has no order: give a list"),
    ("rank", ("a", "b"), "products is 'b', expected a list of products"),
    ("rank", ("a", ["b"], -1), "top_k is -1, expected an integer of 0 or more"),
    ("explain", ("a", ["b", "c"]), "explain takes one product, this is a list of 2"),
]
WRONG_SETTINGS = [
    ("explain", {"max_new_tokens": 0}, "max_new_tokens is 0, expected an integer of at least 1"),
    ("sample", {"n": 0}, "n is 0, expected an integer of at least 1"),
    ("sample", {"temperature": 0}, "temperature 0 gives n equal replies"),
    ("sample", {"top_p": 0}, "top_p is 0, expected more than 0"),
]


@pytest.mark.parametrize("method, arguments, message", BAD, ids=[message for _, _, message in BAD])
def test_what_cannot_be_read_is_named_with_its_place(fresh, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(fresh, method)(*arguments)


@pytest.mark.parametrize("method, settings, message", WRONG_SETTINGS)
def test_a_setting_out_of_range_is_named(fresh, method, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(fresh, method)("a", "b", **settings)


ODD = ["\ud83d half a pair", "NUL \0", "<|end|><|assistant|>4", "x" * 5000, "靴" * 3000]
ODD += [1984, np.int64(7), np.str_("mug")]


def test_odd_titles_have_a_score_each(fresh):
    assert [score.grade in (1, 2, 3, 4) for score in fresh.score("boots", ODD)] == [True] * len(ODD)
    assert fresh.score("boots", 1984) == fresh.score("boots", "1984")


def test_progress_is_shown_on_request_only(fresh, capsys):
    fresh.score("q", TITLES)
    assert capsys.readouterr().err == ""
    fresh.score("q", TITLES, progress=True)
    assert "3/3" in capsys.readouterr().err


# ---- As CrossEncoder -------------------------------------------------------------------------------------------------


def test_predict_gives_an_array_or_one_float(fresh):
    pairs = [("q", title) for title in TITLES]
    found = fresh.predict(pairs, batch_size=2, show_progress_bar=False)
    assert isinstance(found, np.ndarray) and found.shape == (3,) and found.dtype == np.float32
    assert found.tolist() == pytest.approx([score.score for score in fresh.score(pairs)])
    assert fresh.predict([list(pair) for pair in pairs]).tolist() == found.tolist()
    assert isinstance(fresh.predict(pairs[0]), float) and fresh.predict([]).shape == (0,)
    assert fresh.predict(pairs, convert_to_tensor=True).tolist() == found.tolist()
    assert fresh.predict(pairs, convert_to_numpy=False) == found.tolist()


def test_rank_gives_dicts_best_first_with_more_in_them(taught, eight_rows):
    query, titles = eight_rows[0].query, [row.title for row in eight_rows]
    scores = taught.score(query, titles)
    found = taught.rank(query, titles)
    assert [hit["corpus_id"] for hit in found] == sorted(range(8), key=lambda place: (-scores[place].score, place))
    assert all(set(hit) == {"corpus_id", "score", "grade", "tier", "probs", "label_mass", "outside"} for hit in found)
    for hit in found:
        score = scores[hit.index]
        assert (hit["score"], hit["grade"], hit["tier"]) == (hit.score, hit.grade, hit.tier)
        assert hit.result == score and hit.score == score.score and hit.product == titles[hit.index]
    best = taught.rank(query, titles, top_k=2, return_documents=True)
    assert [(hit["corpus_id"], hit["text"]) for hit in best] == [(hit.index, hit.product) for hit in found[:2]]
    assert json.loads(json.dumps(best))[0]["score"] == best[0].score and isinstance(best[0], Ranked)
    assert taught.rank(query, titles, top_k=99) == found and taught.rank(query, titles, top_k=0) == []
    assert taught.rank(query, iter(titles)) == found and taught.rank(query, []) == []


def test_equal_scores_keep_their_order(fresh):
    assert [hit.index for hit in fresh.rank("q", ["same"] * 4, top_k=3)] == [0, 1, 2]


# ---- Explanations and samples ----------------------------------------------------------------------------------------


def test_an_explanation_has_the_score_and_the_five_steps(taught, eight_rows):
    for row in eight_rows[:3]:
        found, score = taught.explain(row.query, {"title": row.title, "price": row.price}), taught.score(row)
        assert (found.grade, found.tier, found.label_mass) == (score.grade, score.tier, pytest.approx(score.label_mass))
        assert found.score == pytest.approx(score.score) and found.probs == pytest.approx(score.probs)
        steps = (found.query, found.item, found.category, found.attributes, found.decision)
        assert "\n".join(f"{name}: {step}" for name, step in zip(STEPS, steps)) == row.cot
        assert found.reply == f"{row.grade}\n{row.cot}" and found.decision_grade == row.grade and found.notes == []
        assert all(f"  {line}" in found.text for line in row.cot.split("\n"))
        assert f"grade       {row.grade}" in found.text


STEPS = ("Query", "Item", "Category", "Attributes", "Decision")


def test_the_script_prints_and_writes_what_explain_gives(taught, taught_judge, eight_rows_file, tmp_path, capsys):
    out = tmp_path / "explained.jsonl"
    explain_script(["--model", taught_judge("post-cot"), "--data", eight_rows_file, "--limit", "2", "--out", str(out)])
    printed = capsys.readouterr().out.split("\n\n")
    for text, (_, written), row in zip(printed, read_jsonl(out), read_judgements(eight_rows_file)):
        found = taught.explain(row)
        assert text.strip().endswith(found.text)
        assert (written["pred_grade"], written["decision"]) == (found.grade, found.decision_grade)
        assert written["reply"] == found.reply and written["grade"] == row.grade


def test_a_thinker_explains_and_samples_but_has_no_scores(thinker, eight_rows):
    row = eight_rows[0]
    found = thinker.explain(row)
    assert (found.grade, found.tier, found.reply) == (row.grade, "Good", row.cot)
    assert found.probs is found.score is found.label_mass is None and found.decision == "4-Excellent"
    assert {reply.grade for reply in thinker.sample(row, n=3, temperature=0.2)} == {4}
    for call in (thinker.score, thinker.predict):
        with pytest.raises(ValueError, match="reasons before it answers .pre-cot.*use explain or sample, or load"):
            call([row])
    with pytest.raises(ValueError, match="has no label probabilities"):
        thinker.rank(row.query, [row.title])


def test_samples_are_parsed_and_repeat_with_their_seed(taught, eight_rows):
    row = eight_rows[2]
    found = taught.sample(row, n=4, temperature=1.0, seed=3)
    assert len(found) == 4 and all(isinstance(reply, Sample) for reply in found)
    assert found == taught.sample(row, n=4, temperature=1.0, seed=3)
    (best,) = taught.sample(row, n=1, temperature=0)
    assert (best.text, best.grade, best.decision_grade) == (f"{row.grade}\n{row.cot}", row.grade, row.grade)
    assert best.well_formed and best.finished and best.logp <= 0 and best.tokens > 5
    (cut,) = taught.sample(row, n=1, max_new_tokens=2)
    assert not cut.finished and not cut.well_formed and cut.tokens == 2


# ---- Loading, and threads --------------------------------------------------------------------------------------------


def test_what_cannot_be_loaded_is_named_without_flags(tmp_path, fresh_judge):
    (tmp_path / "empty").mkdir()
    for name, message in ((tmp_path / "gone", "model .*gone: .*no model folder"), ("runs/gone", "no such run here"),
                          (tmp_path / "empty", "is not a model folder")):  # fmt: skip
        with pytest.raises(FileNotFoundError, match=message) as caught:
            Judge.load(name)
        assert not str(caught.value).startswith("--")
    for setting, message in (({"device": "mars"}, "device mars: not usable here"), ({"beta": 1.5}, "beta is 1.5"),
                             ({"temperature": 0}, "temperature is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Judge.load(fresh_judge("post-cot"), **setting)


def test_beta_temperature_and_the_plain_engine_can_be_given(fresh_judge, fresh):
    judge = Judge.load(fresh_judge("post-cot"), beta=0.9, temperature=0.2, plain=True)
    assert (judge.beta, judge.temperature) == (0.9, 0.2) and "beta=0.9" in repr(judge)
    sharper, plain = judge.score("q", TITLES), fresh.score("q", TITLES)
    assert all(max(one.probs) > max(two.probs) for one, two in zip(sharper, plain))
    assert [score.grade for score in sharper] == [score.grade for score in plain]


def test_threads_that_share_a_judge_get_their_own_scores(fresh):
    queries = [f"query {number}" for number in range(8)]
    expected = {query: fresh.score(query, TITLES) for query in queries}
    found: dict[str, list] = {}

    def run(query: str) -> None:
        found[query] = [fresh.score(query, TITLES) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(query,)) for query in queries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {query: [scores] * 5 for query, scores in expected.items()}


def test_a_row_of_a_data_frame_is_one_product_or_pair_by_its_columns(taught):
    """As pandas hands them out: `itertuples`, `iloc`, `iterrows`."""

    class Series:
        """What a pandas Series has: an index of column names, and its values when it is iterated over."""

        def __init__(self, **cells: str) -> None:
            self.cells, self.index = cells, list(cells)

        def __iter__(self):
            return iter(self.cells.values())

        def __len__(self) -> int:
            return len(self.cells)

        def to_dict(self) -> dict:
            return dict(self.cells)

    row = namedtuple("Pandas", ["title", "query"])("steel travel mug", "travel mug")
    series = Series(title="steel travel mug", query="travel mug")
    right = taught.score("travel mug", "steel travel mug")
    for product in (row, series):
        assert taught.score("travel mug", product) == right
        assert [hit.score for hit in taught.rank("travel mug", [product])] == [right.score]
    for found in taught.score([row, (7, series), series]):  # three rows add up in another order than one
        assert found.grade == right.grade and found.probs == pytest.approx(right.probs, abs=3e-6)


def test_the_names_of_a_cross_encoder_are_taken(taught):
    assert taught.rank("mug", documents=TITLES, batch_size=8) == taught.rank("mug", TITLES)
    for setting in ({"top_k": 1.5}, {"top_k": "2"}):
        with pytest.raises(ValueError, match="expected an integer of 0 or more"):
            taught.rank("mug", TITLES, **setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "foo"}, "dtype is 'foo', expected one of float32"),
        ({"temperature": 0}, "temperature is 0, expected a finite number above 0"),
        ({"temperature": 1}, "beta was fitted on probabilities at temperature 1.39.*, these are at 1"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Judge.load("bundled", **settings)
    assert Judge.load("bundled", temperature=1, beta=0.5).temperature == 1
