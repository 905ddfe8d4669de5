"""A judge: a decoder, its tokenizer, how it is prompted, and the engine that runs it. Every script loads one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from taosr1 import fast
from taosr1.data.judgements import Judgement
from taosr1.engine import PLAIN, Engine
from taosr1.fast.quantize import quantize
from taosr1.model.config import DecoderConfig
from taosr1.model.decoder import Decoder
from taosr1.model.io.model_folder import model_folder
from taosr1.model.io.weights import DTYPES, load_pretrained
from taosr1.model.tokenizer import Tokenizer, train_tokenizer
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig, check_prompt, encode_prompt, marked_prompt, prompt_room
from taosr1.task.prompt_flags import AskFlags, prompt_asked

TINY = "tiny"
BUNDLED, BUNDLED_STUDENT = "bundled", "bundled-student"
BUNDLED_FOLDER = Path(__file__).parent / "bundled" / "thinker"
# What training starts from is the thinker; what is served is the student, which answers first.
BUNDLED_FOLDERS = {
    BUNDLED: BUNDLED_FOLDER,
    "bundled-thinker": BUNDLED_FOLDER,
    BUNDLED_STUDENT: BUNDLED_FOLDER.with_name("student"),
}
# 0.7 M parameters in Qwen3's form: trains in minutes on one CPU core.
TINY_SHAPE = {
    **{"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 1024},
}
TINY_VOCAB = 1024
SERVING_DTYPES = (*DTYPES, "float8", "int8")  # the last two: large products in 8 bits, see `fast/quantize.py`
SERVING_DTYPE_HELP = (
    "type of the weights; float8 (NVIDIA Hopper) and int8 (CPU): 8-bit products, faster prefills for a little accuracy"
)


def judge_folder(spec: str) -> str:
    """The folder (or hub id) of the weights behind `--model`: a bundled judge's, else as `model_folder`."""
    return model_folder(BUNDLED_FOLDERS.get(spec, spec))


def fast_dtype() -> str:
    """"bfloat16" where this CPU multiplies it in hardware (AMX, or AVX-512 with BF16), else "float32"."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that we run on
    return "bfloat16" if able.get("amx_bf16") or able.get("avx512_bf16") else "float32"


@dataclass(frozen=True)
class JudgeModel:
    """reply_tok: the longest reply it will be asked for, which its prompts leave room for (0: as usual)."""

    model: Decoder
    tokenizer: Tokenizer
    prompt: PromptConfig
    engine: Engine = PLAIN
    reply_tok: int = 0

    def prompts(self, judgements: list[Judgement]) -> list[list[int]]:
        """Token ids of every judgement's prompt, each leaving the model room for a reply.

        Characters are not tokens: 600 of them may be 2,000 tokens of Chinese. A row too long for the model's positions
        is shown with shorter texts, so that no row is lost.
        """
        return [self._fitted(judgement)[0] for judgement in judgements]

    def marked_prompt(self, judgement: Judgement) -> list[tuple[str, bool]]:
        """What the model sees of one judgement, as (text, whether it is untrusted); `prompts` gives its token ids."""
        return marked_prompt(self.tokenizer, judgement, self._fitted(judgement)[1])

    def _fitted(self, judgement: Judgement) -> tuple[list[int], PromptConfig]:
        """Token ids of a prompt that fits, and how it was asked for."""
        room = prompt_room(self.model.config.max_position_embeddings, self.reply_tok)
        config = self.prompt
        ids = encode_prompt(self.tokenizer, judgement, config)
        while len(ids) > room and config.max_chars > 1:
            config = replace(config, max_chars=config.max_chars // 2)
            ids = encode_prompt(self.tokenizer, judgement, config)
        return ids, config

    def reply_text(self, ids: list[int]) -> str:
        """A sampled reply as text, without its end-of-sequence token."""
        return self.tokenizer.decode([token for token in ids if token not in self.tokenizer.eos_ids])


def load_judge(
    spec: str,
    *,
    order: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
    plain: bool = False,
    max_new_tokens: int = 0,
    asked: AskFlags | None = None,
) -> JudgeModel:
    """The judge behind `--model`.

    spec: "tiny" (fresh weights), "bundled" (a trained tiny thinker), "bundled-student" (its student, which answers
        first), a run folder, a Hugging Face folder, a GGUF file, "smollm2" (a packaged one), or a hub id.
    A folder that taosr1 wrote says how it is prompted (prompt.json); any other gets the full prompt, or what the flags
    of `asked` say (`prompt_asked`). `order` overrides the order of the reply: an SFT stage may teach a thinker to
    answer first.
    `plain` leaves the fast engine out: every function is the plain program's.
    max_new_tokens: of `--max-new-tokens`, for a judge whose replies are decoded; prompts leave room for as many.
    Raises: FileNotFoundError and ValueError as `load_pretrained`, `prompt_asked` and `check_prompt`; ValueError for an
        unknown device, and for replies that take more than half of the model's positions: the prompt needs the others.
    """
    check_device(device)
    if dtype not in SERVING_DTYPES:
        raise ValueError(f"--dtype is {dtype!r}, expected one of {', '.join(SERVING_DTYPES)}")
    if spec == TINY:
        judge = _tiny_judge(order or "post-cot", seed, device)
        judge = replace(judge, prompt=prompt_asked(spec, None, asked, usual=judge.prompt))
    else:
        if spec.startswith("runs/") and not Path(spec).is_dir():  # looks like a hub id, but is meant as a run
            raise FileNotFoundError(
                f"--model {spec}: no such run here; run the stage that makes it first, or give another folder or hub id"
            )
        folder = judge_folder(spec)
        beside = {"float8": "bfloat16", "int8": fast_dtype()}.get(dtype, dtype)  # of what is not a large product
        model, tokenizer = load_pretrained(folder, dtype=DTYPES[beside], device=device)
        judge = JudgeModel(model, tokenizer, prompt_asked(spec, PromptConfig.load(folder), asked, order=order))
    positions = judge.model.config.max_position_embeddings
    check_prompt(judge.tokenizer, judge.prompt, positions)
    if max_new_tokens > positions // 2:
        fits = f"{spec} has {positions} positions, half of them for the prompt: give at most {positions // 2}"
        raise ValueError(f"--max-new-tokens is {max_new_tokens}, but --model {fits}")
    judge = replace(judge, reply_tok=max_new_tokens)
    if dtype not in DTYPES:
        quantize(judge.model, dtype, emulate=plain)
    return judge if plain else fast.enable(judge)


def check_device(device: str) -> None:
    """Raises: ValueError where `--device` names something this machine does not have."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device}: not usable here ({str(error).splitlines()[0]})") from error


def _tiny_judge(order: str, seed: int, device: str) -> JudgeModel:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(tiny_texts(), TINY_VOCAB, folder)
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, **TINY_SHAPE)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(seed)).to(device)
    return JudgeModel(model, tokenizer, PromptConfig(order=order, style="brief", fields=("title", "price")))


def tiny_texts() -> list[str]:
    """What the tiny tokenizer is trained on: prompts and replies of the embedded shop's reasoned pool."""
    rows = read_pool("reasoned")
    prompts = [text for row in rows for text in (f" {row.query}", f" {row.title}", f" {row.price}")]
    return prompts + [f"{row.grade}\n{row.cot}" for row in rows]
