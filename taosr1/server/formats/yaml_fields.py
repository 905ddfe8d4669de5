"""Reads the fields of a document from YAML, which is untrusted: texts, lists and objects, and nothing else."""

from __future__ import annotations

import textwrap
from typing import Any

from taosr1.runtime.messages import install

MAX_DEPTH = 8


def read_yaml(text: str) -> Any:
    """A document: fields as a dict of texts, lists and dicts, or its whole text where it has no fields.

    Every value stays the text that it is written as ("007", "no"), since every value becomes text of a prompt. Tags
    have no effect, and aliases (`*name`), of which nine can stand for a billion values, are refused.
    Raises: ValueError for what is no YAML, for an alias and for fields too deep in each other; ModuleNotFoundError
        without PyYAML.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"documents in YAML need PyYAML: {install('serve')}") from error
    text = textwrap.dedent(text).lstrip()  # of an indented document whose other lines are not
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # in C where PyYAML was built so, 20 times as fast
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("an alias (*name) is not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"more than {MAX_DEPTH} fields in each other")
        found = yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'not YAML'}{where}") from error
    return _without_null(found)


def _without_null(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _without_null(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_without_null(value) for value in found]
    return "" if found in (None, "~", "null") else found
