"""Concatenated rows, as a GPU scores them, against each row alone.

Here by the plain attention; by the kernel in test_triton_kernels.py and test_gpu.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import label_probs
from taosr1.fast.label_probs import label_probabilities
from taosr1.fast.varlen import (
    AttentionRanges,
    VarlenPrefixes,
    VarlenRows,
    VarlenSuffixes,
    make_tiles,
    plain_prefix_attention,
)
from taosr1.sampling.label_probs import label_probabilities as plain_label_probabilities
from tests.prefix_cases import PREFIX_OF, PREFIXES, alone, draw

LENGTHS = [4, 1, 3, 2, 4, 1]


def rows_of(ids: torch.Tensor, lengths: Sequence[int]) -> list[list[int]]:
    return [row[:length] for row, length in zip(ids.tolist(), lengths)]


def run(model, varlen: VarlenRows, rows: list[list[int]], **keep) -> torch.Tensor:
    """Logits (n, V)."""
    ids = torch.tensor([sum(rows, [])])
    with torch.no_grad():
        return model.head(model.hidden(ids, positions=varlen.positions, attend=varlen, **keep))[0]


@pytest.mark.parametrize("computes_prefixes", [True, False])
def test_all_columns_and_the_last_ones_equal_each_row_alone(family, twins, assert_close, computes_prefixes):
    # A sliding window that all rows fit into.
    plain, model = twins(family, **({"sliding_window": 11} if family == "mistral" else {}))
    prefixes, own = rows_of(draw(3, 7, 0), PREFIXES), rows_of(draw(6, 4, 1), LENGTHS)

    def suffixes() -> VarlenSuffixes:
        memory = VarlenPrefixes(model.config, PREFIXES, torch.float32, "cpu")
        if not computes_prefixes:  # an earlier call did
            run(model, VarlenSuffixes(memory, [0, 2], [1, 1], computes_prefixes=True), [*prefixes, [5], [6]])
        return VarlenSuffixes(memory, PREFIX_OF, LENGTHS, computes_prefixes=computes_prefixes)

    varlen, rows = suffixes(), [*prefixes, *own] if computes_prefixes else own
    assert varlen.last.shape == (1, 6)
    all_columns = run(model, varlen, rows)[-sum(LENGTHS) :].split(LENGTHS)
    last = run(model, suffixes(), rows, keep=varlen.last)
    assert last.shape[0] == 6
    for row, prefix in enumerate(PREFIX_OF):
        expected = alone(plain, prefixes[prefix], own[row])
        assert_close(all_columns[row], expected)
        assert_close(last[row], expected[-1])


@pytest.mark.parametrize("computes_prefixes", [True, False])
def test_rows_may_continue_some_of_the_prefixes(twins, assert_close, computes_prefixes):
    plain, model = twins()
    prefixes, own = rows_of(draw(3, 7, 0), PREFIXES), rows_of(draw(3, 4, 1), (3, 4, 1))
    memory = VarlenPrefixes(model.config, PREFIXES, torch.float32, "cpu")
    if not computes_prefixes:
        run(model, VarlenSuffixes(memory, [0], [1], computes_prefixes=True), [*prefixes, [5]])
    varlen = VarlenSuffixes(memory, [0, 1, 1], (3, 4, 1), first=1, computes_prefixes=computes_prefixes)
    before = [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 3, 4, 5, 6] * computes_prefixes
    assert varlen.positions.tolist() == [[*before, 2, 3, 4, 7, 8, 9, 10, 7]]
    assert varlen.last.tolist() == [[len(before) + last for last in (2, 6, 7)]]
    got = run(model, varlen, [*prefixes * computes_prefixes, *own], keep=varlen.last)
    for row, prefix in enumerate((1, 2, 2)):
        assert_close(got[row], alone(plain, prefixes[prefix], own[row])[-1])


def test_a_query_attends_to_its_prefix_and_to_its_own_row_up_to_itself():
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(count, 1, 4, generator=generator) for count in (5, 5, 5, 9, 9)]
    query, key, value, prefix_key, prefix_value = tensors
    tiles, first_keys = torch.tensor([[0, 2, 0, 3], [2, 5, 3, 8]]), torch.tensor([0, 1, 2, 2, 2])
    out = plain_prefix_attention(*tensors, AttentionRanges(tiles, first_keys, torch.arange(5), 4))
    ranges = [((0, 3), (0, 1)), ((0, 3), (1, 2)), ((3, 8), (2, 3)), ((3, 8), (2, 4)), ((3, 8), (2, 5))]
    for number, (prefix, own) in enumerate((slice(*prefix), slice(*own)) for prefix, own in ranges):
        keys = torch.cat([prefix_key[prefix], key[own]])[:, 0]
        values = torch.cat([prefix_value[prefix], value[own]])[:, 0]
        torch.testing.assert_close(out[number, 0], ((keys @ query[number, 0]) / 2).softmax(0) @ values)


def test_use_where_gradients_are_recorded_is_refused(make_fast_model):
    model = make_fast_model()
    varlen = VarlenRows(model.config, [3], "cpu")
    with pytest.raises(ValueError, match="torch.no_grad"):
        model.hidden(torch.tensor([[1, 2, 3]]), positions=varlen.positions, attend=varlen)


def test_no_call_has_more_tokens_than_asked_for_unless_one_row_has(make_fast_model, monkeypatch):
    """Two prefixes of 45 tokens would fit into a call of 100, but not with a row of 20 after them."""
    monkeypatch.setattr(label_probs, "use_varlen", lambda keys, config: True)
    model, tokens = make_fast_model(max_position_embeddings=128), []

    def last_hidden(model, sequences, varlen):
        tokens.append(sum(map(len, sequences)))
        return torch.zeros(varlen.last.shape[1], 24)

    monkeypatch.setattr(label_probs, "_last_hidden", last_hidden)
    prompts = [[prefix] * 45 + [end] * 20 for prefix in (1, 2, 3) for end in (4, 5, 6)]
    with torch.no_grad():
        rows = torch.cat([index for index, _ in label_probs.first_logits(model, prompts, 100)])
    assert sorted(rows.tolist()) == list(range(9)) and max(tokens) <= 100, tokens


def test_tiles_cover_every_query_once_and_have_one_prefix_each():
    first_keys, end_keys = torch.tensor([2, 10, 20, 40]), torch.tensor([10, 20, 25, 80])
    tiles = make_tiles(torch.tensor([0, 5, 5, 9, 10]), first_keys, end_keys, 3)
    assert tiles.tolist() == [[0, 3, 2, 10], [3, 5, 2, 10], [5, 8, 20, 25], [8, 9, 20, 25], [9, 10, 40, 80]]


def test_rows_without_a_prefix_equal_each_row_alone(twins, assert_close):
    (plain, model), rows = twins(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    varlen = VarlenRows(model.config, [3, 1, 5], "cpu")
    for row, found in zip(rows, run(model, varlen, rows).split([3, 1, 5])):
        assert_close(found, alone(plain, [], row))


@pytest.mark.parametrize("max_tokens", [16384, 70, 1])
def test_label_probabilities_are_those_of_the_plain_function(twins, monkeypatch, max_tokens):
    monkeypatch.setattr(label_probs, "use_varlen", lambda keys, config: True)
    (plain, model), generator = twins(), torch.Generator().manual_seed(0)
    ends = [torch.randint(97, (length,), generator=generator).tolist() for length in (20, 9, 31, 20, 1, 2, 12)]
    prompts = [[7] * 18 + end for end in ends] + ends + [[8] * 30 + end for end in ends]
    tokenizer, settings = SimpleNamespace(label_ids=(5, 6, 7, 8)), {"max_tokens_per_batch": max_tokens}
    found = label_probabilities(model, tokenizer, prompts, **settings)
    expected = plain_label_probabilities(plain, tokenizer, prompts, **settings)
    torch.testing.assert_close(found.probs, expected.probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.label_mass, expected.label_mass, rtol=1e-4, atol=1e-5)
