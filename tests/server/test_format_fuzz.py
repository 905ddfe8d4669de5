"""Whatever JSON a client sends, a format reads it or refuses it in words; nothing else ever comes out."""

from __future__ import annotations

import json

import pytest

hypothesis = pytest.importorskip("hypothesis")
pytest.importorskip("yaml")
from hypothesis import strategies as st  # noqa: E402

from taosr1.server.bodies import parse_json  # noqa: E402
from taosr1.server.errors import Refused  # noqa: E402
from taosr1.server.formats import chat, label_scores, ours, rerank, tei  # noqa: E402
from taosr1.server.formats.format import Answer  # noqa: E402
from taosr1.server.formats.yaml_fields import read_yaml  # noqa: E402
from taosr1.server.limits import Limits  # noqa: E402
from taosr1.serving.scorer import Score  # noqa: E402
from taosr1.task.prompt import ITEM_FIELDS  # noqa: E402

FORMS = (
    ours.SCORE, rerank.RERANK, tei.TEI, label_scores.GENERATIVE_SCORING, label_scores.LABEL_SCORE, chat.CHAT
)  # fmt: skip
FIELDS = (
    "query products product explain rubric judge documents top_n return_documents max_tokens_per_doc rank_fields "
    "truncate_prompt_tokens relevant_spans texts raw_scores return_text truncate truncation_direction items item_first "
    "label_token_ids apply_softmax messages stream n role content type text title brand price category attributes "
    "name Title product_title description model response_format"
).split()
WORDS = st.sampled_from([
    "user", "system", "text", "left", "compare", "lamp", "nan", "\u200b", "\ud800", "\x00", "a: b",
    "Query: lamp\n\ndoc1:\n  ---\ntitle: lamp\n", 'SearchText - q; Hits - [{"id": 1, "source": "lamp"}]',
    'SearchText - q; Hits - [{"id": "\\ud800", "source": "lamp"}, {"id": NaN, "source": 1}]', "Query: q\n\ndoc1:\n",
    "SearchText: q; Hits: [", "--- {}", "{}", '{"title": ["x"]}', "disabled",
])  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 30) | st.integers() | st.floats(allow_nan=False) | WORDS | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
QUEPID = "Query: lamp\n\ndoc1:\n  ---\ntitle: lamp\ncolour: red\n"
HITS = 'SearchText - lamp; Hits - [{"id": "\\ud800", "source": "{\\"title\\": \\"mug\\"}"}]'
USUAL = {
    "score": {"query": "lamp", "products": ["LED lamp", {"title": "mug", "price": 9}]},
    "rerank": {"query": "lamp", "documents": ["LED lamp", {"text": "mug", "colour": "red"}]},
    "tei": {"query": "lamp", "texts": ["LED lamp", "mug"]},
    "generative_scoring": {"query": [7], "items": [[8], [9, 10]], "label_token_ids": [20, 21]},
    "label_score": {"query": "lamp", "items": ["LED lamp", "mug"], "label_token_ids": [23]},
    "chat": {"messages": [{"role": "system", "content": "0 to 3"}, {"role": "user", "content": QUEPID}]},
}


@st.composite
def bodies(draw, name: str):
    """A usual body in which a field or two, or an element of a list, is anything; now and then something else."""
    usual = USUAL[name]
    if name == "chat" and draw(st.booleans()):
        usual = {"messages": [{"role": "user", "content": HITS}]}
    known = [*usual, *FIELDS] if name != "score" else [*usual, "explain", "judge"]
    changes = draw(st.dictionaries(st.sampled_from(known), VALUES, max_size=2))
    body = {**usual, **(changes if draw(st.booleans()) else {})}
    field = draw(st.sampled_from([field for field in usual if isinstance(usual[field], list)]))
    if draw(st.booleans()) and isinstance(body[field], list):
        element = draw(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3) | VALUES)
        body[field] = [*body[field][: draw(st.integers(0, 2))], element]
    return body if draw(st.integers(0, 9)) else draw(VALUES)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_a_body_is_read_or_refused(form, data, served):
    body = data.draw(bodies(form.name))
    try:
        ask = form.read(parse_json(json.dumps(body).encode()), served, Limits(max_products=3, max_chars=50))
    except Refused as refused:
        assert refused.status in (400, 413, 422), refused.message
        assert "\n" not in refused.message and len(refused.message) < 1000
        json.dumps(form.error(refused), allow_nan=False, ensure_ascii=False).encode()
        return
    hypothesis.event("read")
    count = len(ask.prompts) or len(ask.pairs)
    for pair in ask.pairs:
        shown = [getattr(pair, name) for name in ITEM_FIELDS]
        assert pair.query.strip() and any(shown) and max(map(len, (pair.query, *shown))) <= 50
    scores = [Score(4, "Good", (0.1, 0.2, 0.3, 0.4), 0.9)] * count
    reply = form.reply(ask, Answer(scores, (), served, 1, "x"))
    json.dumps(reply, allow_nan=False, ensure_ascii=False).encode()


@hypothesis.given(text=st.text() | st.text("ab:- \n'\"\\|>#~"))
@hypothesis.settings(max_examples=500, deadline=None)
def test_any_text_is_yaml_or_a_value_error(text):
    try:
        read_yaml(text)
    except ValueError as problem:
        assert "\n" not in str(problem)
