"""Rows that continue shared prefixes against each row alone, as samples of a prompt and as products of a query."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import shared_prefix_cache as module
from taosr1.fast.kv_cache import ConcatCache
from taosr1.fast.shared_prefix_cache import SharedPrefixCache, compact_order
from tests.prefix_cases import PREFIX_OF, PREFIXES, alone, draw, prefilled


def shared_rows(cache, capacity: int, copies: bool = False) -> SharedPrefixCache:
    rows = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), capacity)
    return rows.copy_prefixes(max(PREFIXES)) if copies else rows


def write(model, ids: torch.Tensor, rows: SharedPrefixCache) -> torch.Tensor:
    """Logits of tokens (R, T) that are added one at a time."""
    logits = []
    for column in range(ids.shape[1]):
        logits.append(model(ids[:, column : column + 1], cache=rows))
        rows.advance(1)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("cuts", [(4,), (1, 1, 1, 1), (1, 2, 1)])
def test_rows_equal_each_row_alone_however_their_tokens_come(family, twins, assert_close, cuts):
    # A sliding window that all rows fit into.
    plain, model = twins(family, **({"sliding_window": 11} if family == "mistral" else {}))
    cache, prefixes = prefilled(model)
    rows, own, parts = shared_rows(cache, 4), draw(6, 4, 1), []
    with torch.no_grad():
        for part in own.split(cuts, dim=1):
            parts.append(model(part, cache=rows))
            rows.advance(part.shape[1])
    assert rows.lengths.tolist() == [PREFIXES[prefix] + 4 for prefix in PREFIX_OF]
    for row, prefix in enumerate(PREFIX_OF):
        assert_close(torch.cat(parts, 1)[row], alone(plain, prefixes[prefix], own[row].tolist()))


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(
    ("kept", "needed", "in_place"),
    [([1, 3, 5], 2, True), ([4], 1, False), ([0, 1, 2], 2, True)],  # in the last case the longest prefix is dropped
)
def test_selected_rows_continue_as_before_and_unused_prefixes_are_dropped(
    twins, assert_close, kept, needed, in_place, copies
):
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, own = shared_rows(cache, 4, copies), draw(6, 4, 1)
    with torch.no_grad():
        write(model, own[:, :2], rows)
        memory = rows.buffer.data_ptr()
        fewer = rows.select(torch.tensor(kept))
        assert (fewer.buffer.data_ptr() == memory) == in_place
        assert fewer.prefix_keys.shape[1] == (0 if copies else needed)
        assert len(fewer.prefix_lengths) == needed and fewer.rows == len(kept)
        assert fewer.lengths.tolist() == [PREFIXES[PREFIX_OF[row]] + 2 for row in kept]
        got = write(model, own[kept, 2:], fewer)
    for place, row in enumerate(kept):
        assert_close(got[place], alone(plain, prefixes[PREFIX_OF[row]], own[row].tolist())[2:])


def test_kept_entries_stay_in_place_and_the_last_ones_fill_the_gaps():
    assert compact_order(torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()).tolist() == [0, 6, 2, 3, 7]
    assert compact_order(torch.tensor([0, 0, 1]).bool()).tolist() == [2]
    assert compact_order(torch.ones(3).bool()).tolist() == [0, 1, 2]
    assert compact_order(torch.zeros(2).bool()).tolist() == []


# (COPY_UP_TO, COPIES_UP_TO), the most rows, and whether the rows have copies of their prefixes at each of five steps:
# never; from the first fork on; from the first to the second fork; until the second fork; never, for lack of memory.
FORKS = [
    ((0, 0), 11, [0, 0, 0, 0, 0]),
    ((9, 9), 30, [0, 0, 1, 1, 1]),
    ((2.7, 3), 30, [0, 0, 1, 0, 0]),
    ((0, 3), 30, [1, 1, 1, 0, 0]),
    ((9, 9), 11, [0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("copies", "most", "copied"), FORKS)
def test_forked_rows_continue_each_with_its_own_tokens(twins, assert_close, monkeypatch, copies, most, copied):
    """Two rows fork after two tokens, so that all four share those; then one of the copies forks again."""
    monkeypatch.setattr(module, "COPY_UP_TO", copies[0])
    monkeypatch.setattr(module, "COPIES_UP_TO", copies[1])
    monkeypatch.setattr(module, "COLUMNS_AT_ONCE", 2)
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, own, modes = shared_rows(cache, 5, copies == (0, 3)), draw(11, 5, 1), []
    came_from = {6: (4, 2), 7: (0, 2), 8: (6, 3), 9: (6, 3), 10: (2, 3)}  # row: the row and the column where it forked
    for row, (parent, column) in came_from.items():
        own[row, :column] = own[parent, :column]
    parts, count = [], 6
    with torch.no_grad():
        for column in range(5):
            if forked := [parent for parent, at in came_from.values() if at == column]:
                memory = rows.buffer.data_ptr()
                rows = rows.fork(torch.tensor(forked), most=most)
                count += len(forked)
                if copies == (0, 0):  # the first fork allocates memory for both
                    assert (rows.buffer.data_ptr() == memory) == (column == 3)
                    assert rows.buffer.shape[-1] == 11 * rows.keys[0, 0, :, 0].numel() * 5  # `most`, not twice eight
            modes.append(int(rows.prefix_len > 0))
            assert rows.rows == count and len(rows.lengths) == count
            parts.append(model(own[:count, column : column + 1], cache=rows))
            rows.advance(1)
            if column == 3:
                kept = [1, 3, 6, 7, 9, 10]  # in no order of their prefixes
                rows = rows.select(torch.tensor(kept))
                own, count = own[kept], len(kept)
    assert modes == copied
    prefix_of = [*PREFIX_OF, 2, 0, 2, 2, 1]
    for place, row in enumerate(kept):
        origins = [row]  # the rows that wrote the columns, the last one first
        while origins[-1] in came_from:
            origins.append(came_from[origins[-1]][0])
        writer = [next(r for r in origins if column >= came_from.get(r, (0, 0))[1]) for column in range(4)]
        found = torch.cat([*(parts[column][writer[column]] for column in range(4)), parts[4][place]])
        assert_close(found, alone(plain, prefixes[prefix_of[row]], own[place].tolist()))


def test_some_prefixes_of_a_cache_are_continued_without_a_copy(twins, assert_close):
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, own = SharedPrefixCache.of(cache, torch.tensor([0, 1, 1]), 3, first=1), draw(3, 3, 2)
    assert rows.prefix_keys.data_ptr() == cache.keys[:, 1:].data_ptr()
    with torch.no_grad():
        got = model(own, cache=rows)
    for row, prefix in enumerate((1, 2, 2)):
        assert_close(got[row], alone(plain, prefixes[prefix], own[row].tolist()))


def test_concatenated_caches_equal_each_row_alone(twins, assert_close):
    """Rows that entered at different times have different numbers of own tokens."""
    plain, model = twins()
    cache, prefixes = prefilled(model)
    first, second, own = shared_rows(cache, 4), cache.expand(1, capacity=12), draw(9, 3, 3)
    with torch.no_grad():
        model(own[:6, :2], cache=first)
        first.advance(2)
        both = ConcatCache([first, second])
        assert both.rows == 9 and both.lengths.tolist() == [*first.lengths.tolist(), *second.lengths.tolist()]
        got = model(own[:, 2:], cache=both)
    for row in range(6):
        assert_close(got[row], alone(plain, prefixes[PREFIX_OF[row]], own[row].tolist())[2:])
    for row in range(6, 9):
        assert_close(got[row], alone(plain, prefixes[row - 6], own[row, 2:].tolist()))


def test_concatenated_caches_take_one_token_at_a_time(make_fast_model):
    model = make_fast_model()
    cache, _ = prefilled(model)
    with torch.no_grad(), pytest.raises(ValueError, match="2 tokens a row"):
        model(draw(6, 2, 1), cache=ConcatCache([shared_rows(cache, 4)]))


def test_with_too_many_scores_for_the_memory_each_row_gets_a_copy_of_its_prefix(
    make_fast_model, assert_close, monkeypatch
):
    model, results, called, copied = make_fast_model(), [], [], module.copied_prefix_attention
    monkeypatch.setattr(module, "copied_prefix_attention", lambda *given: called.append(1) or copied(*given))
    for limit in (2**24, 1):
        monkeypatch.setattr(module, "SCORES_AT_ONCE", limit)
        cache, _ = prefilled(model)
        with torch.no_grad():
            results.append(model(draw(6, 4, 1), cache=shared_rows(cache, 4)))
        assert bool(called) == (limit == 1)
    assert_close(*results)


def test_a_full_cache_is_an_error(make_fast_model):
    model = make_fast_model()
    cache, _ = prefilled(model)
    with torch.no_grad(), pytest.raises(ValueError, match="4 tokens a row, but the cache holds 3"):
        model(draw(6, 4, 1), cache=shared_rows(cache, 3))


def test_rows_longer_than_a_sliding_window_are_refused(make_fast_model):
    cache, _ = prefilled(make_fast_model("mistral"))
    with pytest.raises(ValueError, match=r"up to 7 \+ 4 tokens has no sliding window of 5"):
        shared_rows(cache, 4)


@pytest.mark.parametrize("copies", [False, True])
def test_contiguous_rows_give_the_same_however_often_columns_are_added(twins, assert_close, monkeypatch, copies):
    """Two columns at a time."""
    monkeypatch.setattr(module, "COLUMNS_AT_ONCE", 2)
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, own, parts, allocated = shared_rows(cache, 5, copies), draw(6, 5, 1), [], []
    kept = torch.arange(6)
    with torch.no_grad():
        for column in range(5):
            if column == 3:
                kept = torch.tensor([0, 2, 3, 5])
                rows = rows.select(kept)
            parts.append(model(own[kept, column : column + 1], cache=rows))
            rows.advance(1)
            allocated.append(rows.allocated)
            assert rows.keys[0].is_contiguous() and rows.values[1].is_contiguous()
    assert allocated == ([max(PREFIXES) + columns for columns in (1, 3, 3, 5, 5)] if copies else [2, 2, 4, 4, 5])
    for place, row in enumerate(kept.tolist()):
        found = torch.cat([part[place if len(part) == len(kept) else row] for part in parts])
        assert_close(found, alone(plain, prefixes[PREFIX_OF[row]], own[row].tolist()))


def test_prefixes_can_be_copied_and_shared_again_between_any_two_tokens(twins, assert_close):
    """After more columns than were allocated at first, in both directions."""
    plain, model = twins()
    cache, prefixes = prefilled(model)
    rows, own = shared_rows(cache, 30), draw(6, 30, 1)
    with torch.no_grad():
        parts = [write(model, own[:, :10], rows)]
        rows = rows.copy_prefixes(max(PREFIXES))
        assert rows.prefix_len == max(PREFIXES) and rows.prefix_keys.shape[1] == 0
        # The prompts' cache can be freed.
        assert rows.prefix_keys.untyped_storage().nbytes() == rows.prefix_values.untyped_storage().nbytes() == 0
        parts.append(write(model, own[:, 10:20], rows))
        with pytest.raises(ValueError, match="2 tokens a row: rows with copies of their prefixes take one at a time"):
            model(own[:, 20:22], cache=rows)
        rows.advance(0)
        rows = rows.copy_prefixes(0)
        assert rows.prefix_len == 0 and rows.prefix_keys.shape[1] == len(PREFIXES)
        parts.append(write(model, own[:, 20:], rows))
    for row, prefix in enumerate(PREFIX_OF):
        assert_close(torch.cat(parts, 1)[row], alone(plain, prefixes[prefix], own[row].tolist()))


@pytest.mark.parametrize("copies", [False, True])
def test_half_types_stay_near_float32(make_fast_model, copies):
    """Forty columns, five times COLUMNS_AT_ONCE, with prefixes of several lengths."""
    model, own, results = make_fast_model(), draw(6, 40, 1), []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        cache, _ = prefilled(model)
        with torch.no_grad():
            results.append(write(model, own, shared_rows(cache, 40, copies)).float())
    difference = (results[0] - results[1]).abs()
    assert difference.median() < 0.05 and difference.max() < 0.1 * results[0].abs().max()
