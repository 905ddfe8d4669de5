"""Which pairs are called outside of a small judge's world."""

from __future__ import annotations

import pytest

from taosr1.serving.outside import World, known_words
from taosr1.task.judgement import Judgement

WORLD = known_words([Judgement("red hiking boots", "Norvell hiking boots leather", price="$49")], ("title", "price"))


@pytest.mark.parametrize(
    ("query", "title", "unknown"),
    [
        ("Hiking boots, RED", "boots leather size 42", ("size",)),  # one word of three is more than a quarter
        ("red boot", "hiking boots 5 l, 42cm", ()),  # another number of it, and units
        ("Norvell's boots", "hiking boots", ()),
        ("\u7ea2 boots", "red boots", ("\u7ea2",)),  # one character is a word in other scripts
        ("red hiking boots", "Norvell red leather boots XL", ()),  # one of five is a slip
        ("iphone case", "Norvell hiking boots", ("iphone", "case")),
        ("red boots", "wireless mouse usb", ("wireless", "mouse", "usb")),
        ("\u7ea2\u8272\u8fde\u8863\u88d9", "red boots", ("\u7ea2\u8272\u8fde\u8863\u88d9",)),
        ("boots 42", "boots 43 $12.50", ()),  # numbers say nothing
        ("???", "red boots", ("???",)),  # not a single word
        ("1984", "red boots", ("1984",)),
        ("red boots nan", "red boots", ("nan",)),
    ],
)
def test_a_text_with_more_than_a_quarter_of_unknown_words_is_outside(query, title, unknown):
    assert WORLD.unknown_words(Judgement(query, title), ("title", "price")) == unknown


def test_fields_that_the_judge_does_not_read_do_not_count():
    row = Judgement("red boots", "hiking boots", description="an entirely unheard of story")
    assert WORLD.unknown_words(row, ("title",)) == ()
    assert WORLD.unknown_words(row, ("title", "description")) == ("entirely", "unheard", "story")


def test_a_world_is_stored_beside_the_weights_and_a_judge_without_one_calls_nothing_outside(tmp_path):
    assert World.load(tmp_path).unknown_words(Judgement("iphone", "case"), ("title",)) == ()
    WORLD.save(tmp_path)
    assert World.load(tmp_path) == WORLD
    assert (tmp_path / "known_words.txt").read_text() == "boots\nhiking\nleather\nnorvell\nred\n"
