"""The files of a tokenizer in Hugging Face folders, read as transformers' AutoTokenizer reads them.

The vocabulary is in tokenizer.json. Which tokens have a name (bos_token, ...), which are added to the vocabulary and
what the chat template is may be spread over five files more, and over an adapter's folder and its base's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from taosr1.runtime.messages import say_once

VOCABULARY, CONFIG = "tokenizer.json", "tokenizer_config.json"
NAMES, ADDED = "special_tokens_map.json", "added_tokens.json"
TEMPLATE, TEMPLATE_FOLDER, OLD_TEMPLATE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
# What `Tokenizer.save` copies, byte for byte.
TOKENIZER_FILES = (
    *(VOCABULARY, CONFIG, NAMES, ADDED, TEMPLATE, OLD_TEMPLATE, f"{TEMPLATE_FOLDER}/*.jinja"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
MAX_IDS = 2**31
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names that classes of transformers give where no file does.
CLASS_NAMES = {
    "Qwen2Tokenizer": dict.fromkeys(("unk_token", "eos_token", "pad_token"), "<|endoftext|>"),
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
}


@dataclass(frozen=True)
class SpecialTokens:
    """named: the text of each named token. add: tokens to be added to the vocabulary, in this order.

    ids: the id that a file gives to an added token, and the file. as_text: special tokens are read as text everywhere.
    """

    named: dict[str, str]
    add: list[AddedToken] = field(default_factory=list)
    ids: dict[str, tuple[int, str]] = field(default_factory=dict)
    as_text: bool = False


# ---- files -----------------------------------------------------------------------------------------------------------


def read_files(folders: Sequence[Path]) -> dict[str, bytes]:
    """The tokenizer's files of one folder; or of an adapter's folder and its bases', as if they were in one.

    The first folder with a tokenizer.json gives the vocabulary and all that belongs to it. An adapter's folder without
    one changes single settings. The chat template is that of the first folder that has any.

    Raises: FileNotFoundError without a tokenizer.json; ValueError naming a file that cannot be read.
    """
    found = [_files_of(folder) for folder in folders]
    place = next((number for number, files in enumerate(found) if VOCABULARY in files), None)
    if place is None:
        raise FileNotFoundError(
            f"{folders[-1] / VOCABULARY} does not exist: a tokenizer.json is needed (transformers writes one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )
    files = dict(found[place])
    if CONFIG not in files and NAMES not in files:  # an adapter's tokenizer.json alone: the names are its base's
        below = next((one for one in found[place:] if CONFIG in one or NAMES in one), {})
        files |= {name: data for name, data in below.items() if name in (CONFIG, NAMES)}
    winner = next((number for number, one in enumerate(found) if templates_in(one, folders[number])), place)
    if winner == place and not any(found[:place]):
        return files  # byte for byte, of a single folder
    for above, folder in zip(found[:place][::-1], folders[:place][::-1]):
        _merge(files, above, folder)
    if winner > place:
        say_once(f"the tokenizer in {folders[place]} has no chat template; that of its base {folders[winner]} is used")
    templates = templates_in(found[winner], folders[winner])
    files = {name: data for name, data in files.items() if not name.startswith((TEMPLATE_FOLDER, "chat_template"))}
    config = _object(files, CONFIG, folders[place])
    config.pop("chat_template", None)
    files[CONFIG] = json.dumps(config, indent=2, ensure_ascii=False).encode()
    for name, source in templates.items():
        files[TEMPLATE if name == "default" else f"{TEMPLATE_FOLDER}/{name}.jinja"] = source.encode()
    return files


def templates_in(files: dict[str, bytes], folder: Path) -> dict[str, str]:
    """The chat templates by name: .jinja files come before those in tokenizer_config.json.

    Choice: chat_template.json, where old processors keep theirs, is read last; AutoTokenizer does not read it.
    """
    try:
        found = {"default": files[TEMPLATE].decode()} if TEMPLATE in files else {}
        found |= {Path(name).stem: data.decode() for name, data in files.items() if name.startswith(TEMPLATE_FOLDER)}
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}: a chat template is not UTF-8 ({error})") from error
    for name in (CONFIG, OLD_TEMPLATE):
        template = None if found else _object(files, name, folder).get("chat_template")
        if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
            template = {entry.get("name"): entry.get("template") for entry in template}
        found = found or (template if isinstance(template, dict) else {} if template is None else {"default": template})
        if not all(isinstance(text, str) for pair in found.items() for text in pair):
            raise ValueError(f"{folder / name}: field 'chat_template' holds something else than text")
        outside = [title for title in found if Path(title).name != title or "\\" in title]
        if outside:  # `read_files` makes a file's name of it
            raise ValueError(f"{folder / name}: field 'chat_template' has a template named {outside[0]!r}, a path")
    return found


def _files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for pattern in TOKENIZER_FILES for path in sorted(folder.glob(pattern)) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _merge(files: dict[str, bytes], above: dict[str, bytes], folder: Path) -> None:
    """Put an adapter's settings over those of its base, key by key; what it names hides the same name in every file."""
    own, below = ({name: _object(part, name, folder) for name in (CONFIG, NAMES, ADDED)} for part in (above, files))
    decoder = below[CONFIG].get("added_tokens_decoder")
    if isinstance(decoder, dict) and own[CONFIG].get("added_tokens_decoder") is None:
        # Beside the base's decoder the adapter's other two files would not count, so they go into the config.
        typed = {
            key: {"__type": "AddedToken", **value} if isinstance(value, dict) and key.endswith("_token") else value
            for key, value in own[NAMES].items()
        }
        new = {str(number): {"content": text} for text, number in own[ADDED].items()}
        known = {number: token.content for number, token in _entries(decoder, folder / CONFIG).items()}
        new = {number: token for number, token in new.items() if known.get(int(number)) != token["content"]}
        own[CONFIG] = {**own[CONFIG], **typed, "added_tokens_decoder": {**decoder, **new}}
    below[NAMES] = {key: value for key, value in below[NAMES].items() if key not in own[CONFIG]}
    for name, part in own.items():
        if name in files or part:  # also where nothing is left of a base's names
            files[name] = json.dumps({**below[name], **part}, indent=2, ensure_ascii=False).encode()


def _object(files: dict[str, bytes], name: str, folder: Path) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is legal in JSON, and no text
    except ValueError as error:
        raise ValueError(f"{folder / name} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{folder / name} holds a {type(value).__name__}, expected a JSON object")
    return value


# ---- special tokens --------------------------------------------------------------------------------------------------


def special_tokens(
    files: dict[str, bytes], folder: Path, spec: dict[str, Any], model: dict[str, Any]
) -> SpecialTokens:
    """The named tokens and the tokens that the files beside tokenizer.json (`spec`) add to it. model: its config.json.

    As in transformers 5: where tokenizer_config.json has an added_tokens_decoder, special_tokens_map.json and
    added_tokens.json do not count; else the map's names replace those of tokenizer_config.json, null included.
    New tokens get their ids in the order of STANDARD, then the names of the model's own, then the extra ones.

    Raises: ValueError naming the file and the field that holds something else than a token.
    """
    config = _object(files, CONFIG, folder)
    decoder, names = config.get("added_tokens_decoder"), {}
    if decoder is None:
        names = _object(files, NAMES, folder)
    named, extra = _names(config, names, folder, _defaults(config, spec, model))
    if decoder is None:
        source = ADDED
        listed = _old_entries(_object(files, ADDED, folder), folder / ADDED, (*named.values(), *extra))
    else:
        source, listed = CONFIG, _entries(decoder, folder / CONFIG)
    add = [token for _, token in sorted(listed.items())]
    known = {token.content for token in add} | _texts_of(spec.get("added_tokens"))
    for token in (*named.values(), *extra):
        if token.content and token.content not in known:
            known.add(token.content)
            add.append(token)
    texts = {token.content for token in named.values()}
    for token in add:
        token.special = token.special or token.content in texts
    return SpecialTokens(
        {key: token.content for key, token in named.items()},
        add,
        {token.content: (number, source) for number, token in listed.items()},
        as_text=bool(config.get("split_special_tokens")),
    )


def _names(
    config: dict[str, Any], names: dict[str, Any], folder: Path, defaults: dict[str, str]
) -> tuple[dict[str, AddedToken], list[AddedToken]]:
    """The tokens with a name, and the special tokens without one. names: special_tokens_map.json, where it counts."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    both = {**defaults, **config, **names}
    named = {key: both[key] for key in STANDARD if key in both}
    # Names of the model's own: the config's text counts, then the map. An object of the config must say that it is a
    # token.
    own = {key: value for key, value in config.items() if key.endswith("_token") and key not in STANDARD}
    settled = {key: value for key, value in own.items() if isinstance(value, str)}
    typed = {key: value for key, value in own.items() if isinstance(value, dict) and "__type" in value}
    typed |= {key: value for key, value in names.items() if key.endswith("_token") and key not in STANDARD}
    named |= typed | settled
    more = names.get("extra_special_tokens")
    if isinstance(more, list) and isinstance(extra, list):
        extra = [*extra, *more]
    else:
        extra = more or extra or names.get("additional_special_tokens") or []
    if isinstance(extra, dict):  # names of the model's own
        named, extra = {**named, **extra}, []
    if not isinstance(extra, list):
        raise ValueError(f"{folder / CONFIG}: field 'extra_special_tokens' is {extra!r:.60}, expected a list of tokens")
    tokens = {
        key: _token(value, f"{folder / (NAMES if key in names else CONFIG)}: field {key!r}", special=True)
        for key, value in named.items()
        if value is not None and (key in STANDARD or isinstance(value, (str, dict)))
    }
    return tokens, [_token(value, f"{folder / CONFIG}: field 'extra_special_tokens'", special=True) for value in extra]


def _defaults(config: dict[str, Any], spec: dict[str, Any], model: dict[str, Any]) -> dict[str, str]:
    """Names that no file gives, as far as tokenizer.json has such tokens.

    transformers 5 chooses the class by config.json, too: always Qwen2Tokenizer for qwen2, for qwen3 where no file names
    a class, and never a class with names for mistral.
    """
    family, kind = model.get("model_type"), config.get("tokenizer_class") or model.get("tokenizer_class")
    if family == "qwen2" or (family in ("qwen3", "qwen3_moe") and kind is None):
        kind = "Qwen2Tokenizer"
    kind = "" if family == "mistral" else str(kind).removesuffix("Fast")
    is_llama3 = kind == "LlamaTokenizer" and '"ByteLevel"' in json.dumps(
        [spec.get("pre_tokenizer"), spec.get("decoder")]
    )
    names = dict(CLASS_NAMES.get(kind, {})) if not is_llama3 else {}
    if isinstance(spec.get("padding"), dict):
        names.setdefault("pad_token", spec["padding"].get("pad_token"))
    vocabulary = spec["model"].get("vocab", {})
    words = vocabulary if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
    return {key: text for key, text in names.items() if text in words or text in _texts_of(spec.get("added_tokens"))}


def _texts_of(added_tokens: list[dict[str, Any]] | None) -> set[str]:
    return {token["content"] for token in added_tokens or []}


def _old_entries(added: dict[str, Any], where: Path, special: Sequence[AddedToken]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json, which holds no more than their texts and ids."""
    texts = {token.content for token in special}
    return {
        _id(number, f"{where}: field {text!r}"): AddedToken(text, normalized=text not in texts, special=text in texts)
        for text, number in added.items()
    }


def _entries(decoder: Any, where: Path) -> dict[int, AddedToken]:
    if not isinstance(decoder, dict):
        raise ValueError(f"{where}: field 'added_tokens_decoder' is {decoder!r:.60}, expected tokens by id")
    field = f"{where}: field 'added_tokens_decoder'"
    return {_id(number, field): _token(token, f"{field}, id {number}") for number, token in decoder.items()}


def _id(number: Any, field: str) -> int:
    if isinstance(number, bool) or not str(number).isdecimal() or int(number) >= MAX_IDS:
        raise ValueError(f"{field}: id {number!r:.40} is no number below {MAX_IDS}")
    return int(number)


def _token(value: Any, field: str, *, special: bool = False) -> AddedToken:
    """A token of a file: its text, or an object with its text as 'content' and how it is matched."""
    flags = {"special": True} if special else {}
    if isinstance(value, dict):
        text = value.get("content")
        names = ("single_word", "lstrip", "rstrip", "normalized", "special")
        flags = {name: bool(value[name]) for name in names if name in value} | flags
    else:
        text = value
    if not isinstance(text, str):
        raise ValueError(f"{field} is {value!r:.80}, expected a token's text or an object with it as 'content'")
    return AddedToken(text, **flags)
