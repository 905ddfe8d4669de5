"""Which prompts share a prefix: a partition, never at a loss, and by query rather than by template."""

from __future__ import annotations

import random
from array import array

import pytest

from taosr1.fast.prefix_groups import SHORTEST_PREFIX, common_prefix, group_by_prefix, runs_of_tokens
from taosr1.sampling.batching import pad_right


def saved(groups) -> int:
    return sum((len(group.rows) - 1) * group.length for group in groups)


def test_products_of_one_query_share_template_and_query():
    template, queries = list(range(100, 120)), [[1] * 30, [2] * 40, [3] * 25]
    products = [[50, product, *([7] * (product % 5))] for product in range(8)]
    prompts = [template + query + product for query in queries for product in products]
    order = random.Random(0).sample(range(24), 24)
    groups = group_by_prefix([prompts[i] for i in order])
    found = {group.length: sorted(order[row] for row in group.rows) for group in groups}
    expected = {20 + 30 + 1: list(range(8)), 20 + 40 + 1: list(range(8, 16)), 20 + 25 + 1: list(range(16, 24))}
    assert found == expected


def test_prompts_of_different_queries_share_the_template_where_nothing_longer_is_lost():
    template = list(range(100, 160))
    groups = group_by_prefix([template + [query, query] for query in range(6)])
    assert [(group.length, sorted(group.rows)) for group in groups] == [(60, [0, 1, 2, 3, 4, 5])]


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_is_in_one_group_with_the_shared_prefix_and_a_token_more(seed):
    draw = random.Random(seed)
    stems = [[draw.randrange(3) for _ in range(draw.randrange(60))] for _ in range(5)]
    prompts = []
    for _ in range(60):
        prompt = draw.choice(stems)[: draw.randrange(60)] + [draw.randrange(3) for _ in range(draw.randrange(1, 30))]
        prompts.append(tuple(prompt) if draw.random() < 0.5 else prompt)
    groups = group_by_prefix(prompts)
    assert sorted(row for group in groups for row in group.rows) == list(range(60))
    for group in groups:
        first = tuple(prompts[group.rows[0]])[: group.length]
        assert all(tuple(prompts[row])[: group.length] == first for row in group.rows)
        assert all(len(prompts[row]) > group.length for row in group.rows)
        assert len(group.rows) == 1 or group.length >= SHORTEST_PREFIX
    assert saved(groups) >= 0 and any(len(group.rows) > 1 for group in groups)


def test_equal_prompts_are_computed_once_but_for_the_last_token():
    (group,) = group_by_prefix([list(range(40))] * 3)
    assert (group.length, group.rows) == (39, [0, 1, 2])


def test_no_prompts_and_short_ones_share_nothing():
    assert group_by_prefix([]) == []
    assert [len(group.rows) for group in group_by_prefix([[1, 2, 3, 4], [1, 2, 3, 5], [1]])] == [1, 1, 1]


def test_the_common_prefix_is_that_of_a_loop():
    draw = random.Random(0)
    for _ in range(200):
        # The same bytes, in other places.
        first, second = ([draw.choice([1, 256]) for _ in range(draw.randrange(12))] for _ in range(2))
        most, shorter = draw.randrange(12), min(len(first), len(second))
        expected = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), shorter)
        keys = (array("i", ids).tobytes() for ids in (first, second))
        assert common_prefix(*keys, most) == min(expected, most)


@pytest.mark.parametrize("max_tokens", [1, 40, 100, 10_000])
def test_runs_cover_all_rows_in_order_and_stay_within_their_budget(max_tokens):
    lengths = [random.Random(1).randrange(1, 40) for _ in range(50)]
    runs = list(runs_of_tokens(lengths, max_tokens))
    assert [row for start, end in runs for row in range(start, end)] == list(range(50))
    for start, end in runs:
        assert (end - start) * max(lengths[start:end]) <= max_tokens or end - start == 1
    assert list(runs_of_tokens([], max_tokens)) == []


def test_padding_stands_on_the_right():
    assert pad_right([[1], (2, 3)]).tolist() == [[1, 0], [2, 3]]
