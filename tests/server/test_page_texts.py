"""The page's pure functions, run in Chromium and compared with the Python that they must agree with."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from taosr1.data.columns import KNOWN
from taosr1.serving.tiering import cumulative_tier

# What a shell, Python or JSON would read as something else, where a snippet quotes it wrongly.
NASTY = [
    "Rock 'n' roll mug", 'a "quoted" 12" lamp', "$HOME `id` $(id) !! \\n \\u0041 \\", "'; echo hacked; '",
    "{query} ${input} %s", '"""', "# -- //", "麂皮 靴子 👩🏽‍🚀", "\u202ereversed\u202c zero\u200bwidth",
    "tab\there", "two\nlines", "-d @/etc/passwd", "&<>'",
]  # fmt: skip


@pytest.fixture(scope="module")
def tab(browser, server):
    context = browser.new_context()
    page = context.new_page()
    page.goto(server.url)
    yield page
    context.close()


def call(tab, name: str, *arguments):
    """What a function of texts.js returns; "SNIPPETS.curl" names one inside an object."""
    program = """async ([name, given]) => {
        const module = await import('/texts.js');
        return name.split('.').reduce((value, part) => value[part], module)(...given);
    }"""
    return tab.evaluate(program, [name, list(arguments)])


# --- Tiers ------------------------------------------------------------------------------------------------------------


def test_a_tier_of_the_page_is_the_tier_of_the_server_for_any_probabilities_and_beta(tab):
    """20,000 random pairs of probabilities and beta, and thousands where beta is exactly a sum that is reached."""
    generator = np.random.default_rng(0)
    batches = []  # (rows, beta)
    for beta in [*generator.uniform(1e-3, 1, 39).tolist(), 1.0]:
        rows = generator.dirichlet([generator.choice([0.05, 0.3, 1.0, 5.0])] * 4, 500)
        batches.append((rows.astype(np.float32 if len(batches) % 2 else np.float64).tolist(), beta))
    for rows, _ in batches[:10]:
        sums = [(row, row[3] + row[2] + extra) for row in rows[:50] for extra in (0.0, row[1])]
        batches += [([row], min(1.0, reached)) for row, reached in sums if reached > 0]
    eighths = [[a, b, c, 8 - a - b - c] for a in range(9) for b in range(9 - a) for c in range(9 - a - b)]
    batches += [((np.array(eighths) / 8).tolist(), step / 8) for step in range(1, 9)]
    expected = [cumulative_tier(rows, beta) for rows, beta in batches]
    program = """async (batches) => {
        const { cumulativeTier } = await import('/texts.js');
        return JSON.parse(batches).map(([rows, beta]) => rows.map((probs) => cumulativeTier(probs, beta)));
    }"""
    assert tab.evaluate(program, json.dumps(batches)) == expected
    tiers = [tier for batch in expected for tier in batch]
    assert all(tiers.count(tier) > 1000 for tier in ("Good", "Mid", "Bad"))
    # The ties decide: beta a little above a sum that is reached gives other tiers.
    above = [cumulative_tier(rows, min(1.0, beta + 1e-9)) for rows, beta in batches]
    assert sum(ours != theirs for ours, theirs in zip(expected, above)) > 300


# --- Products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pasted", "products"),
    [
        ("mug\n\n  lamp, black  \r\n", ["mug", "lamp, black"]),
        ('title,price\n"a ""b"", c",$3\nlamp,\n', [{"title": 'a "b", c', "price": "$3"}, {"title": "lamp"}]),
        ("\ufeffProduct Title\tBrand\nmug\tOddly", [{"Product Title": "mug", "Brand": "Oddly"}]),
        ("name;price\nmug;3,50", [{"name": "mug", "price": "3,50"}]),
        ("title\nmug", [{"title": "mug"}]),
        ('{"title": "mug", "price": 3}\n\n{"title": "lamp"}', [{"title": "mug", "price": 3}, {"title": "lamp"}]),
        ('["mug", {"title": "lamp"}]', ["mug", {"title": "lamp"}]),
        ("[2 pack] mug", ["[2 pack] mug"]),
        ('12" pan', ['12" pan']),
        ("", []),
    ],
)
def test_pasted_products_are_read_as_lines_csv_or_json(pasted, products, tab):
    assert call(tab, "readProducts", pasted) == products


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ('{"title": "mug"}\n{"title": ', "Line 2 of the products is not JSON"),
        ("title,price\nmug,1,2", "Row 1 of the products has 3 cells, the header has 2"),
        ('title,price\n"mug,1\nlamp,2', "The quote that begins in line 2 of the products is not closed"),
    ],
)
def test_products_that_cannot_be_read_are_refused_with_their_place(pasted, words, tab):
    with pytest.raises(Exception, match=re.escape(words)):
        call(tab, "readProducts", pasted)


def test_the_names_of_a_title_are_those_that_the_server_reads(tab):
    found = tab.evaluate("import('/texts.js').then((module) => [...module.TITLES])")
    assert set(found) == {name for name, ours in KNOWN.items() if ours == "title"}


# --- Server-sent events -----------------------------------------------------------------------------------------------

COLLECT = """async ([bytes, size, breaks]) => {
    const { events } = await import('/server.js'), found = [];
    const stream = new ReadableStream({ start(controller) {
        for (let at = 0; at < bytes.length; at += size) controller.enqueue(new Uint8Array(bytes.slice(at, at + size)));
        if (breaks) controller.error(new TypeError('network error')); else controller.close();
    } });
    try {
        for await (const event of events(new Response(stream))) found.push(event);
    } catch (problem) { found.push(problem.message); }
    return found;
}"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_are_read_however_the_network_cuts_them(size, end, tab):
    """Source: HTML standard, section 9.2: lines "field: value", ": comment", and a blank line that ends an event."""
    token, torn = ["event: token", 'data: {"text": "靴 👩🏽‍🚀\\n"}', ""], ["event: torn", 'data: {"x"']
    sent = end.join([": keep alive", "", *token, "data: 1", "", *torn]).encode()
    assert tab.evaluate(COLLECT, [list(sent), size, False]) == [["token", {"text": "靴 👩🏽‍🚀\n"}], ["message", 1]]


def test_a_stream_that_breaks_off_is_said(tab):
    found = tab.evaluate(COLLECT, [list(b"data: 1\n\nda"), 1000, True])
    assert found[-1] == "The connection broke off before the answer was complete."


# --- Snippets ---------------------------------------------------------------------------------------------------------


def body() -> dict:
    products = [*NASTY, *({"title": text, "price": 3, "brand": None} for text in NASTY)]
    return {"query": "mug 'not' \"$5\" \\ `big`", "products": products}


def run(command: list[str], **settings) -> str:
    found = subprocess.run(command, capture_output=True, text=True, timeout=30, **settings)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_curl_snippet_sends_the_very_request(tab, server):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    snippet = call(tab, "SNIPPETS.curl", server.url, body(), False)
    assert "\u202e" not in snippet and "\u200b" not in snippet  # nothing that reorders or hides what is copied
    for shell in filter(None, map(shutil.which, ("bash", "dash"))):
        assert json.loads(run([shell, "-c", snippet]))["results"] == server.ask("/score", body())[1]["results"]


def test_the_python_snippet_sends_the_very_request(tab, server):
    snippet = call(tab, "SNIPPETS.python", server.url, body(), False)
    expected = server.ask("/score", body())[1]["results"]
    said = [" ".join(map(str, (one["index"], one["grade"], one["tier"], round(one["score"], 3)))) for one in expected]
    assert run([sys.executable, "-c", snippet]).splitlines() == said


def test_the_python_literal_of_a_body_is_the_body(tab):
    odd = {"products": [{"a": True, "b": False, "c": None, "d": 1.5, "e": [], "f": {}, "g": -0.25}, 7, "\x7f👩🏽‍🚀"]}
    snippet = call(tab, "SNIPPETS.python", "http://127.0.0.1:1", odd, False)
    source = snippet.partition("headers = ")[0]
    assert json.loads(run([sys.executable, "-c", f"{source}\nprint(json.dumps(body))"])) == odd
    assert "True" in source


@pytest.mark.parametrize("language", ["curl", "python", "elasticsearch"])
def test_a_snippet_for_a_server_with_a_key_names_where_the_key_is_and_never_the_key(language, tab):
    with_key = call(tab, f"SNIPPETS.{language}", "http://127.0.0.1:1", body(), True)
    named = {"curl": "$TAOSR1_API_KEY", "python": "{os.environ['TAOSR1_API_KEY']}", "elasticsearch": "${api_key}"}
    assert f"Bearer {named[language]}" in with_key
    assert "Bearer" not in call(tab, f"SNIPPETS.{language}", "http://127.0.0.1:1", body(), False)


def test_the_elasticsearch_snippet_asks_for_what_this_server_answers(tab, server):
    """Elasticsearch puts the query and the texts, as JSON, into the request's template, and reads two JSON paths.

    Source: elasticsearch-specification, inference.put_custom (custom service, task type rerank).
    """
    snippet = call(tab, "SNIPPETS.elasticsearch", server.url, body(), False)
    form = r"PUT _inference/rerank/\w+\n(.*)\n\nPOST _inference/rerank/\w+\n(.*)"
    puts, posts = re.fullmatch(form, snippet, re.S).groups()
    service, asked = json.loads(puts)["service_settings"], json.loads(posts)
    sent = service["request"]
    for name in ("query", "input"):
        sent = sent.replace(f"${{{name}}}", json.dumps(asked[name]), 1)
    assert service["url"].startswith(server.url)
    status, reply = server.ask(service["url"].removeprefix(server.url), json.loads(sent))
    assert status == 200 and len(reply["results"]) == len(body()["products"]) == len(asked["input"])
    paths = service["response"]["json_parser"]
    assert paths == {"relevance_score": "$.results[*].relevance_score", "reranked_index": "$.results[*].index"}
    assert all({"relevance_score", "index"} <= one.keys() for one in reply["results"])
    assert json.loads(puts)["service"] == "custom" and "secret_parameters" in service
    assert asked["input"][: len(NASTY)] == asked["input"][len(NASTY) :]
