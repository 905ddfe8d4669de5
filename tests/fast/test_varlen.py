"""Rows behind shared prefixes end to end, as a GPU scores them, against each row alone: by the plain attention here, by the kernel in test_kernels.py and test_gpu.py."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import label_probs as labels
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.onednn_linear import is_plain, plain_paths
from taosr1.fast.varlen import (
    AttentionRanges,
    VarlenPrefixes,
    VarlenRows,
    VarlenSuffixes,
    prefix_attention_plain,
    tiles_of,
)
from tests.prefix_cases import PREFIX_OF, PREFIXES, alone, draw

LENGTHS = [4, 1, 3, 2, 4, 1]


def rows_of(ids: torch.Tensor, lengths: Sequence[int]) -> list[list[int]]:
    return [row[:length] for row, length in zip(ids.tolist(), lengths)]


def run(model, flat: VarlenRows, rows: list[list[int]], **read) -> torch.Tensor:
    """Logits (n, V)."""
    with torch.no_grad():
        return model.head(model.hidden(torch.tensor([sum(rows, [])]), positions=flat.positions, attends=flat, **read))[0]


@pytest.mark.parametrize("brings", [True, False])
def test_all_columns_and_the_last_ones_equal_each_row_alone(family, make_model, assert_close, brings):
    model = make_model(family, **({"sliding_window": 11} if family == "mistral" else {}))  # all that is looked at lies within it
    prefixes, own = rows_of(draw(3, 7, 0), PREFIXES), rows_of(draw(6, 4, 1), LENGTHS)

    def suffixes() -> VarlenSuffixes:
        cache = VarlenPrefixes(model.config, PREFIXES, torch.float32, "cpu")
        if not brings:  # somebody else has
            run(model, VarlenSuffixes(cache, [0, 2], [1, 1]), [*prefixes, [5], [6]])
        return VarlenSuffixes(cache, PREFIX_OF, LENGTHS)

    flat, rows = suffixes(), [*prefixes, *own] if brings else own
    assert flat.brings is brings and flat.last.shape == (1, 6)
    everywhere, last = run(model, flat, rows)[-sum(LENGTHS) :].split(LENGTHS), run(model, suffixes(), rows, read=flat.last)
    assert last.shape[0] == 6
    for row, prefix in enumerate(PREFIX_OF):
        expected = alone(model, prefixes[prefix], own[row])
        assert_close(everywhere[row], expected)
        assert_close(last[row], expected[-1])


@pytest.mark.parametrize("brings", [True, False])
def test_some_of_the_prefixes_are_enough(make_model, assert_close, brings):
    model = make_model()
    prefixes, own, cache = rows_of(draw(3, 7, 0), PREFIXES), rows_of(draw(3, 4, 1), (3, 4, 1)), VarlenPrefixes(make_model().config, PREFIXES, torch.float32, "cpu")
    if not brings:
        run(model, VarlenSuffixes(cache, [0], [1]), [*prefixes, [5]])
    flat = VarlenSuffixes(cache, [0, 1, 1], (3, 4, 1), first=1)
    before = [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 5, 6] * brings
    assert flat.positions.tolist() == [[*before, 2, 3, 4, 7, 8, 9, 10, 7]] and flat.last.tolist() == [[len(before) + last for last in (2, 6, 7)]]
    got = run(model, flat, [*prefixes * brings, *own], read=flat.last)
    for row, prefix in enumerate((1, 2, 2)):
        assert_close(got[row], alone(model, prefixes[prefix], own[row])[-1])


def test_a_query_sees_its_prefix_and_its_own_row_up_to_itself():
    generator = torch.Generator().manual_seed(0)
    query, key, value, prefix_key, prefix_value = (torch.randn(count, 1, 4, generator=generator) for count in (5, 5, 5, 9, 9))
    sight = AttentionRanges(torch.tensor([[0, 2, 0, 3], [2, 5, 3, 8]]), torch.tensor([0, 1, 2, 2, 2]), torch.tensor([0, 1, 2, 3, 4]), 4)
    out = prefix_attention_plain(query, key, value, prefix_key, prefix_value, sight)
    for number, (prefix, own) in enumerate([(slice(0, 3), slice(0, 1)), (slice(0, 3), slice(1, 2)), *((slice(3, 8), slice(2, end)) for end in (3, 4, 5))]):
        keys, values = torch.cat([prefix_key[prefix], key[own]])[:, 0], torch.cat([prefix_value[prefix], value[own]])[:, 0]
        torch.testing.assert_close(out[number, 0], ((keys @ query[number, 0]) / 2).softmax(0) @ values)


def test_no_gradient_is_lost_in_silence(make_model):
    flat = VarlenRows(make_model().config, [3], "cpu")
    with pytest.raises(ValueError, match="torch.no_grad"):
        make_model().hidden(torch.tensor([[1, 2, 3]]), positions=flat.positions, attends=flat)


def test_no_call_has_more_tokens_than_asked_for_unless_one_row_has(make_model, monkeypatch):
    """Two prefixes of 45 tokens would fit into a call of 100, but not with a row of 20 behind them."""
    monkeypatch.setattr(labels, "use_varlen", lambda keys, config: True)
    model, tokens = make_model(max_position_embeddings=128), []
    monkeypatch.setattr(labels, "_read_last", lambda model, rows, flat: tokens.append(sum(map(len, rows))) or torch.zeros(flat.last.shape[1], 24))
    prompts = [[prefix] * 45 + [end] * 20 for prefix in (1, 2, 3) for end in (4, 5, 6)]
    with torch.no_grad():
        rows = torch.cat([index for index, _ in labels.first_logits(model, prompts, 100)])
    assert sorted(rows.tolist()) == list(range(9)) and max(tokens) <= 100, tokens


def test_tiles_cover_every_query_once_and_keep_to_one_prefix():
    tiles = tiles_of(torch.tensor([0, 5, 5, 9, 10]), torch.tensor([2, 10, 20, 40]), torch.tensor([10, 20, 25, 80]), 3)
    assert tiles.tolist() == [[0, 3, 2, 10], [3, 5, 2, 10], [5, 8, 20, 25], [8, 9, 20, 25], [9, 10, 40, 80]]


def test_rows_without_a_prefix_equal_each_row_alone(make_model, assert_close):
    model, rows = make_model(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    flat = VarlenRows(model.config, [3, 1, 5], "cpu")
    got = run(model, flat, rows).split([3, 1, 5])
    for row, found in zip(rows, got):
        assert_close(found, alone(model, [], row))


@pytest.mark.parametrize("max_tokens", [16384, 70, 1])
def test_label_probabilities_are_those_of_the_plain_path(make_model, monkeypatch, max_tokens):
    monkeypatch.setattr(labels, "use_varlen", lambda keys, config: not is_plain())
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
