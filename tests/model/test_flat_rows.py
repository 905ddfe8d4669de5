"""Rows behind shared prefixes end to end, as a GPU scores them, against each row alone: by the plain attention here, by the fused kernel in test_gpu.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taosr1.model.flat_rows import FlatPrefixes, FlatRows, FlatSuffixes, varlen_attention
from taosr1.model.linear import is_plain, plain_paths
from taosr1.model.pointwise import merged
from taosr1.sampling import labels
from taosr1.sampling.labels import label_probabilities
from tests.behind_prefixes import PREFIX_OF, PREFIXES, alone, draw

LENGTHS = [4, 1, 3, 2, 4, 1]


@torch.no_grad()
def prefilled(model) -> tuple[FlatPrefixes, list[list[int]]]:
    prefixes = [row[:length] for row, length in zip(draw(len(PREFIXES), max(PREFIXES), 0).tolist(), PREFIXES)]
    flat = FlatPrefixes(model.config, PREFIXES, torch.float32, "cpu")
    model.hidden(torch.tensor([sum(prefixes, [])]), positions=flat.positions, attends=flat, read=flat.last)
    return flat, prefixes


def test_all_columns_and_the_last_ones_equal_each_row_alone(family, make_model, assert_close):
    model = make_model(family, **({"sliding_window": 11} if family == "mistral" else {}))  # all that is looked at lies within it
    cache, prefixes = prefilled(model)
    own = [row[:length] for row, length in zip(draw(6, 4, 1).tolist(), LENGTHS)]
    ids = torch.tensor([[token for row in own for token in row]])
    flat = FlatSuffixes(cache, PREFIX_OF, LENGTHS)
    with torch.no_grad():
        everywhere = model.head(model.hidden(ids, positions=flat.positions, attends=flat))[0].split(LENGTHS)
        last = model.head(model.hidden(ids, positions=flat.positions, attends=flat, read=flat.last))[0]
    assert last.shape[0] == 6
    for row, prefix in enumerate(PREFIX_OF):
        expected = alone(model, prefixes[prefix], own[row])
        assert_close(everywhere[row], expected)
        assert_close(last[row], expected[-1])


def test_some_prefixes_of_a_cache_are_enough(make_model, assert_close):
    model = make_model()
    cache, prefixes = prefilled(model)
    own = [row[:length] for row, length in zip(draw(3, 4, 1).tolist(), (3, 4, 1))]
    flat = FlatSuffixes(cache, [0, 1, 1], (3, 4, 1), first=1)
    assert flat.positions.tolist() == [[2, 3, 4, 7, 8, 9, 10, 7]] and flat.last.tolist() == [[2, 6, 7]]
    with torch.no_grad():
        got = model.head(model.hidden(torch.tensor([sum(own, [])]), positions=flat.positions, attends=flat, read=flat.last))[0]
    for row, prefix in enumerate((1, 2, 2)):
        assert_close(got[row], alone(model, prefixes[prefix], own[row])[-1])


def test_attention_over_two_sets_of_keys_is_merged_by_their_log_sum_exp():
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(1, count, 2, 8, generator=generator, dtype=torch.float64) for count in (3, 9, 9))

    def attend(chosen: slice) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.einsum("rqhd,rkhd->rqhk", query, keys[:, chosen])
        return torch.einsum("rqhk,rkhd->rqhd", scores.softmax(-1), values[:, chosen]), scores.logsumexp(-1)

    first, second = attend(slice(0, 5)), attend(slice(5, 9))
    torch.testing.assert_close(merged(*first, *second), attend(slice(0, 9))[0], rtol=1e-12, atol=1e-12)
    assert (merged(first[0], second[1], second[0], first[1]) - attend(slice(0, 9))[0]).abs().max() > 1e-2  # shares exchanged


def test_a_sequences_queries_see_its_keys_and_no_others():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(count, 1, 4, generator=generator) for count in (5, 10, 10))
    queries_from, keys_from = (torch.tensor(numbers, dtype=torch.int32) for numbers in ([0, 2, 5], [3, 5, 8]))
    for causal in (False, True):
        out, lse = varlen_attention(query, key, value, queries_from, keys_from, (3, 3), causal)
        for number, (first, end) in enumerate([(3, 4), (3, 5), (5, 6), (5, 7), (5, 8)] if causal else [(3, 5)] * 2 + [(5, 8)] * 3):
            scores = (key[first:end, 0] @ query[number, 0]) / 2
            torch.testing.assert_close(out[number, 0], scores.softmax(0) @ value[first:end, 0])
            torch.testing.assert_close(lse[number, 0], scores.logsumexp(0))


def test_rows_without_a_prefix_equal_each_row_alone(make_model, assert_close):
    model, rows = make_model(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    flat = FlatRows([3, 1, 5], "cpu")
    with torch.no_grad():
        got = model.head(model.hidden(torch.tensor([sum(rows, [])]), positions=flat.positions, attends=flat))[0].split([3, 1, 5])
    for row, found in zip(rows, got):
        assert_close(found, alone(model, [], row))


@pytest.mark.parametrize("max_tokens", [16384, 70])
def test_label_probabilities_are_those_of_the_plain_path(make_model, monkeypatch, max_tokens):
    monkeypatch.setattr(labels, "flash_serves", lambda keys, config: not is_plain())
    model, generator = make_model(), torch.Generator().manual_seed(0)
    ends = [torch.randint(97, (length,), generator=generator).tolist() for length in (20, 9, 31, 20, 1, 2, 12)]
    prompts = [[7] * 18 + end for end in ends] + ends + [[8] * 30 + end for end in ends]

    def scores():
        return label_probabilities(model, SimpleNamespace(label_ids=(5, 6, 7, 8)), prompts, max_tokens_per_batch=max_tokens)

    found = scores()
    with plain_paths():
        expected = scores()
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.label_mass, expected.label_mass, rtol=1e-4, atol=1e-5)
