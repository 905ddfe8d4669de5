"""The recipes of examples/serving/, done as each system does them, against a running server with a key.

Sources: elastic/elasticsearch, x-pack/plugin/inference, services/custom (CustomRequest, RerankParameters,
ValidatingSubstitutor, RerankResponseParser); opensearch-project/ml-commons, common/connector (HttpConnector,
CohereRerankPreProcessFunction, CohereRerankPostProcessFunction, StringUtils) and neural-search's rerank processor;
opensearch-project/search-relevance, MLInputOutputTransformer; o19s/quepid, llm_judge_adapters.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples/serving"
KEY = "a-key-of-the-test"
QUERY = "small camping shelter"
TITLES = [
    "steel travel mug",
    "Kestro pro lightweight camping shelter cotton blue",
    'a "quoted" title\\ with \n lines, $19 {and} <b>more</b> \u706f \U0001f600 \u202e',
    "",
]


@pytest.fixture(scope="module")
def keyed(start_server):
    return start_server("--model", "bundled", "--api-key", KEY)


def recipe(name: str) -> dict:
    return json.loads((RECIPES / name).read_text(encoding="utf-8"))


def ask(server, url: str, body: str, headers: dict[str, str]) -> dict:
    """Post a text to the path of a recipe's URL; the server's reply, which must be a 200."""
    path = re.fullmatch(r"http://taosr1\.example:8000(/.*)", url)[1]
    status, reply = server.ask(path, body.encode(), headers=headers)
    assert status == 200, reply
    return reply


# ---- Elasticsearch ---------------------------------------------------------------------------------------------------
def substituted(template: str, values: dict[str, str]) -> str:
    """As ValidatingSubstitutor: every ${name} replaced, and none left over."""
    text = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], template)
    assert not re.search(r"\$\{.*?\}", text)
    return text


def at_path(reply: dict, path: str) -> list:
    """As the service's MapPathExtractor for "$.list[*].field"."""
    name, field = re.fullmatch(r"\$\.(\w+)\[\*\]\.(\w+)", path).groups()
    return [item[field] for item in reply[name]]


@pytest.mark.parametrize("query", [QUERY, 'a "query" with \\ and \n in it'])
def test_elasticsearch_gets_one_score_for_every_document(query, keyed):
    settings = recipe("elasticsearch_inference.json")["service_settings"]
    secrets = {name: KEY if value == "KEY" else value for name, value in settings["secret_parameters"].items()}
    values = {"query": json.dumps(query), "input": json.dumps(TITLES), "api_key": json.dumps(KEY)}
    headers = {name: substituted(value, secrets) for name, value in settings["headers"].items()}
    reply = ask(keyed, settings["url"], substituted(settings["request"], values), headers)
    paths = settings["response"]["json_parser"]
    places, scores = at_path(reply, paths["reranked_index"]), at_path(reply, paths["relevance_score"])
    assert sorted(places) == list(range(len(TITLES)))
    assert len(scores) == len(TITLES) and all(type(score) is float and 0 <= score <= 1 for score in scores)
    if query == QUERY:
        assert places[0] == 1


def test_elasticsearch_searches_with_the_endpoint_that_the_recipe_makes():
    retriever = recipe("elasticsearch_search.json")["retriever"]["text_similarity_reranker"]
    assert set(retriever) == {"retriever", "field", "inference_id", "inference_text", "rank_window_size"}
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert f"_inference/rerank/{retriever['inference_id']}" in readme


def test_elasticsearchs_own_cohere_service_is_understood(keyed):
    """CohereV2RerankRequestEntity: model, query, documents, and top_n and return_documents where they are set."""
    body = {"model": "taosr1", "query": QUERY, "documents": TITLES, "return_documents": False, "top_n": 10}
    headers = {"Authorization": f"Bearer {KEY}", "Request-Source": "unspecified:elasticsearch"}
    status, reply = keyed.ask("/v2/rerank", body, headers=headers)
    assert status == 200 and len(reply["results"]) == len(TITLES)


# ---- OpenSearch ------------------------------------------------------------------------------------------------------
def of_connector(action: dict, connector: dict, parameters: dict[str, object]) -> tuple[str, dict[str, str]]:
    """Body and headers as HttpConnector makes them: text that is no JSON is escaped, anything else is JSON."""
    texts = {}
    for name, value in {**connector["parameters"], **parameters}.items():
        text = value if isinstance(value, str) else json.dumps(value)
        texts[f"parameters.{name}"] = json.dumps(text)[1:-1] if isinstance(value, str) else text
    body = re.sub(r"\$\{([\w.]+)\}", lambda found: texts[found[1]], action["request_body"])
    json.loads(body)  # HttpConnector refuses a payload that is no JSON
    secrets = {f"credential.{name}": KEY for name in connector["credential"]}
    return body, {
        name: re.sub(r"\$\{([\w.]+)\}", lambda found: secrets[found[1]], value)
        for name, value in action["headers"].items()
    }


@pytest.mark.parametrize("query", [QUERY, 'a "query" with \\ and \n in it'])
def test_opensearch_can_cast_what_the_connector_returns(query, keyed):
    connector = recipe("opensearch_connector.json")
    action = connector["actions"][0]
    assert action["pre_process_function"] == "connector.pre_process.cohere.rerank"
    parameters = {"query": query, "documents": TITLES, "top_n": len(TITLES)}  # as this function makes them
    body, headers = of_connector(action, connector, parameters)
    results = ask(keyed, action["url"], body, headers)["results"]
    assert action["post_process_function"] == "connector.post_process.cohere.rerank"
    scores: list[float | None] = [None] * len(results)
    for result in results:
        assert type(result["index"]) is int and type(result["relevance_score"]) is float  # (Integer), (Double)
        scores[result["index"]] = result["relevance_score"]
    assert len(scores) == len(TITLES) and None not in scores  # else "scores and hits are not the same length"
    if query == QUERY:
        assert max(scores) == scores[1]


def test_opensearch_may_ask_the_address_of_its_connectors():
    allowed = recipe("opensearch_settings.json")["persistent"]["plugins.ml_commons.trusted_connector_endpoints_regex"]
    for name in ("opensearch_connector.json", "opensearch_judge_connector.json"):
        assert any(re.fullmatch(pattern, recipe(name)["actions"][0]["url"]) for pattern in allowed)


def test_opensearchs_pipeline_and_search_name_what_the_processor_needs():
    processor = recipe("opensearch_pipeline.json")["response_processors"][0]["rerank"]
    assert set(processor) == {"ml_opensearch", "context", "ignore_failure"}
    assert recipe("opensearch_model.json")["function_name"] == "remote"
    search = recipe("opensearch_search.json")
    assert search["ext"]["rerank"]["query_context"]["query_text"] == QUERY
    assert list(search["query"]["match"]) == processor["context"]["document_fields"]


def test_the_search_relevance_workbench_gets_a_rating_a_hit(keyed):
    connector = recipe("opensearch_judge_connector.json")
    hits = [{"id": str(place), "source": title} for place, title in enumerate(TITLES)]
    end = (
        'Return ONLY a JSON object in this EXACT format:\n{"ratings": [{"id": "doc_id_here", "rating_score": <score>}]}'
    )
    messages = [
        {"role": "system", "content": f"You are a rater.\n- Score 1.0: Perfect match\n{end}"},
        {"role": "user", "content": f"SearchText - {QUERY}; Hits - {json.dumps(hits)}"},
    ]
    action = connector["actions"][0]
    body, headers = of_connector(action, connector, {"messages": messages})
    reply = ask(keyed, action["url"], body, headers)
    ratings = json.loads(reply["choices"][0]["message"]["content"])["ratings"]
    assert [rating["id"] for rating in ratings] == ["0", "1", "2", "3"]
    assert all(type(rating["rating_score"]) is float for rating in ratings) and ratings[1]["rating_score"] > 0.5


# ---- Quepid ----------------------------------------------------------------------------------------------------------
def test_quepid_gets_a_judgment_with_an_explanation(keyed):
    options = recipe("quepid_options.json")
    yaml = json.loads((Path(__file__).parent / "data/ruby_yaml.json").read_text(encoding="utf-8"))[0]["yaml"]
    text = {"type": "text", "text": f"Query: desk lamp\n\ndoc1:\n  {yaml}\n"}
    messages = [{"role": "system", "content": "Rate it."}, {"role": "user", "content": [text]}]
    body = {"temperature": 0.7, "model": options["llm_model"], "response_format": {"type": "json_object"}}
    url = f"{options['llm_service_url']}/v1/chat/completions"
    reply = ask(keyed, url, json.dumps({**body, "messages": messages}), {"Authorization": f"Bearer {KEY}"})
    judged = json.loads(reply["choices"][0]["message"]["content"])
    assert judged["judgment"] in (0, 1, 2, 3) and judged["explanation"]


# ---- Where it runs ---------------------------------------------------------------------------------------------------
def words_of_serve(text: str) -> list[str]:
    """The flags that a recipe starts infer/serve.py with."""
    words = shlex.split(re.sub(r"[\[\],]", " ", text))
    return words[words.index("infer/serve.py") + 1 :]


def test_the_unit_and_the_image_start_the_server_with_flags_that_it_has():
    unit = re.search(r"^ExecStart=(.*)$", (RECIPES / "taosr1.service").read_text(), re.MULTILINE)[1]
    image = " ".join(re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE))
    fields = runpy.run_path(str(ROOT / "infer/serve.py"))["Config"].__dataclass_fields__
    for text in (unit, image):
        flags = [word[2:].replace("-", "_") for word in words_of_serve(text) if word.startswith("--")]
        assert {"model", "host", "port"} <= set(flags) <= set(fields)


def test_the_unit_gives_the_server_time_to_drain():
    unit = (RECIPES / "taosr1.service").read_text()
    drain, stop = (int(re.search(pattern, unit)[1]) for pattern in (r"--drain-s (\d+)", r"TimeoutStopSec=(\d+)"))
    assert drain < stop


def test_systemd_accepts_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")
    unit = tmp_path / "taosr1.service"
    here = (RECIPES / "taosr1.service").read_text().replace("/opt/taosr1/.venv/bin/python", sys.executable)
    unit.write_text(here)
    found = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert found.returncode == 0 and "taosr1" not in found.stderr, found.stderr
    wrong = tmp_path / "wrong.service"
    wrong.write_text(here.replace("ProtectSystem=strict", "ProtectSistem=strict"))
    found = subprocess.run(["systemd-analyze", "verify", str(wrong)], capture_output=True, text=True)
    assert "ProtectSistem" in found.stderr  # else the check above sees nothing


def test_the_image_copies_what_the_server_needs():
    copied = set()
    for line in re.findall(r"^COPY (.*)$", (RECIPES / "Dockerfile").read_text(), re.MULTILINE):
        copied |= set(line.split()[:-1])
    assert all((ROOT / name).exists() for name in copied)
    assert {"setup.py", "constraints.txt", "README.md", "taosr1", "infer"} <= copied  # setup.py reads README.md


def test_every_file_here_is_told_of_in_the_readme():
    readme = (RECIPES / "README.md").read_text(encoding="utf-8")
    for path in RECIPES.iterdir():
        assert path.is_dir() or path.name == "README.md" or path.name in readme, path.name
