"""A budget of tokens for one prompt, shared fairly by its texts."""

from __future__ import annotations

from collections.abc import Sequence

LEAST_TEXT_TOK = 48  # of the query and the title: with less, hardly a title would be whole
_CHARACTER_TOK = 4  # of a character of four bytes, at most


def fair_shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each text are shown, at most `room` in all. lengths: tokens of the query, then of the fields.

    The query comes first: it is shown whole as long as it takes half of the room or the fields leave it more, so that a
    query of 600 words cannot push out the product. What it leaves is shared by the fields: one that is shorter than an
    equal share stays whole, and the others share what that leaves.
    """
    room = max(room, 0)
    shares = [min(lengths[0], max(room // 2, room - sum(lengths[1:])))] + [0] * (len(lengths) - 1)
    left = room - shares[0]
    shortest_first = sorted(range(1, len(lengths)), key=lambda text: lengths[text])
    for waiting, text in zip(range(len(shortest_first), 0, -1), shortest_first):
        shares[text] = min(lengths[text], left // waiting)
        left -= shares[text]
    return shares


def cut_to_room(tokenizer, texts: Sequence[list[int]], room: int) -> list[list[int]]:
    """The token ids of the texts (the query's first), cut at their ends to `room` tokens in all; no half characters."""
    lengths = [len(ids) for ids in texts]
    if sum(lengths) <= room:
        return list(texts)
    return [_first_tokens(tokenizer, ids, share) for ids, share in zip(texts, fair_shares(lengths, room))]


def _first_tokens(tokenizer, ids: list[int], most: int) -> list[int]:
    if len(ids) <= most:
        return ids
    for fewer in range(most, max(most - _CHARACTER_TOK, -1), -1):
        if not tokenizer.decode(ids[:fewer]).endswith("\ufffd"):  # what a half character is decoded to
            return ids[:fewer]
    return ids[:most]  # the text holds that character itself
