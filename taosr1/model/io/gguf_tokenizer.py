"""The tokenizer in a GGUF file's metadata as Hugging Face files, which give the token ids that llama.cpp gives.

GGUF names the way in which a text is split before its pieces are merged (`tokenizer.ggml.pre`) and leaves the pattern
to the program: the patterns below are those of llama.cpp's src/llama-vocab.cpp. A name that is not among them is
refused, because another split would give other ids without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = f"{_CONTRACTION}|{_WORDS}|\\p{{N}}|{_REST}"
_LLAMA3 = f"{_CONTRACTION}|{_WORDS}|\\p{{N}}{{1,3}}|{_REST}"
# `tokenizer.ggml.pre`: the patterns that split a text, one after the other.
SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
}
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3")  # a piece that is a token itself is not built by merging
CONTROL, USER_DEFINED, BYTE = 3, 4, 6  # of `tokenizer.ggml.token_type`
# What ends a reply beside eos_token_id, where it is a control token (as in llama.cpp).
ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
_SPACE = "\u2581"  # SentencePiece writes spaces so


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """(tokenizer, the object of tokenizer_config.json). metadata: the file's keys and values; where: the file.

    Raises: ValueError naming a key that is missing, or a kind of tokenizer that is not read.
    """
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ValueError(f"{where}: tokenizer.ggml.tokens is missing, so the file has no tokenizer: take another file")
    if kind == "gpt2":
        tokenizer = _byte_level(metadata, tokens, where)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens)
    else:
        raise ValueError(f"{where}: tokenizer.ggml.model is {kind!r}, expected gpt2 (BPE of bytes) or llama (SPM)")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for text, token_kind in zip(tokens, kinds, strict=True):
        if token_kind in (CONTROL, USER_DEFINED):
            tokenizer.add_tokens([AddedToken(text, special=token_kind == CONTROL, normalized=False)])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name in ("bos", "eos", "unknown", "padding"):
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if number is not None and 0 <= number < len(tokens):
            config[{"unknown": "unk", "padding": "pad"}.get(name, name) + "_token"] = tokens[number]
    if template := metadata.get("tokenizer.chat_template"):
        config["chat_template"] = template
    return tokenizer, config


def end_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Ids of the tokens that end a reply, the file's eos_token_id first."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type") or ()
    named = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    known = [number for number, kind in enumerate(kinds) if kind == CONTROL and tokens[number] in ENDS]
    return list(dict.fromkeys(number for number in (*named, *known) if number is not None))


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], where: str) -> tokenizers.Tokenizer:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): split by patterns, bytes as characters, merges in their order."""
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in SPLITS:
        raise ValueError(
            f"{where}: tokenizer.ggml.pre is {pre!r}, which splits texts in a way that is not known here (known: "
            f"{', '.join(SPLITS)}); take the model's Hugging Face folder instead"
        )
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or ()]
    vocabulary = {text: number for number, text in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre in _WHOLE_WORDS))
    steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in SPLITS[pre]]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """SentencePiece BPE (Llama 2, Mistral): the file holds a score per token, and merges follow from the scores."""
    scores = metadata["tokenizer.ggml.scores"]
    vocabulary = {text: number for number, text in enumerate(tokens)}
    merges = []
    for number in sorted(range(len(tokens)), key=lambda number: -scores[number]):  # stable
        text = tokens[number]
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        known = [(left, right) for left, right in halves if left in vocabulary and right in vocabulary]
        merges += sorted(known, key=lambda half: (vocabulary[half[0]], vocabulary[half[1]]))
    unknown = tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)]
    model = models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    spaces = [normalizers.Prepend(_SPACE)] * bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", _SPACE)])
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, *[decoders.Strip(" ", 1, 0)] * len(spaces)])
    return tokenizer
