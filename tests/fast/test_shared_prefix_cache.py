"""Rows behind shared prefixes against each row alone, as samples of a prompt and as products of a query."""

from __future__ import annotations

import pytest
import torch

from taosr1.fast import shared_prefix_cache as shared_cache
from taosr1.fast.onednn_linear import plain_paths
from taosr1.fast.shared_prefix_cache import ConcatCache, SharedPrefixCache, compact_order
from tests.prefix_cases import PREFIX_OF, PREFIXES, alone, draw, prefilled


@pytest.mark.parametrize("plain, dense", [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("cuts", [(4,), (1, 1, 1, 1), (3, 1), (1, 2, 1)])
def test_rows_equal_each_row_alone_however_their_tokens_come(family, make_model, assert_close, monkeypatch, cuts, plain, dense):
    monkeypatch.setattr(shared_cache, "dense_keys", lambda keys: dense)
    model = make_model(family, **({"sliding_window": 11} if family == "mistral" else {}))  # all that is looked at lies within it
    cache, prefixes = prefilled(model)
    branches, own, parts = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4), draw(6, 4, 1), []
    with torch.no_grad(), plain_paths(plain):
        for part in own.split(cuts, dim=1):
            parts.append(model(part, cache=branches))
            branches.advance(part.shape[1])
    assert branches.lengths.tolist() == [PREFIXES[prefix] + 4 for prefix in PREFIX_OF]
    for row, prefix in enumerate(PREFIX_OF):
        assert_close(torch.cat(parts, 1)[row], alone(model, prefixes[prefix], own[row].tolist()))


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("kept, needed, stays", [([1, 3, 5], 2, True), ([4], 1, False), ([0, 1, 2], 2, True)])  # the last: the longest prefix leaves
def test_selected_rows_go_on_as_before_and_prefixes_without_a_row_are_dropped(make_model, assert_close, kept, needed, stays, copies):
    model = make_model()
    cache, prefixes = prefilled(model)
    branches, own = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4), draw(6, 4, 1)
    branches = branches.with_copies() if copies else branches
    with torch.no_grad():
        write(model, own[:, :2], branches)
        memory = branches.keys.untyped_storage().data_ptr()
        fewer = branches.select(torch.tensor(kept))
        assert (fewer.keys.untyped_storage().data_ptr() == memory) == stays
        assert fewer.prefix_keys.shape[1] == (0 if copies else needed) and len(fewer.prefix_lengths) == needed and fewer.rows == len(kept)
        assert fewer.lengths.tolist() == [PREFIXES[PREFIX_OF[row]] + 2 for row in kept]
        got = write(model, own[kept, 2:], fewer)
    for place, row in enumerate(kept):
        assert_close(got[place], alone(model, prefixes[PREFIX_OF[row]], own[row].tolist())[2:])


def test_what_stays_does_not_move_and_the_last_fill_the_gaps():
    assert compact_order(torch.tensor([1, 0, 1, 1, 0, 0, 1, 1]).bool()).tolist() == [0, 6, 2, 3, 7]
    assert compact_order(torch.tensor([0, 0, 1]).bool()).tolist() == [2]
    assert compact_order(torch.ones(3).bool()).tolist() == [0, 1, 2] and compact_order(torch.zeros(2).bool()).tolist() == []


# of prefixes: never, from the first fork, until the second; from the start until then; never, for want of room
@pytest.mark.parametrize("copies, most", [((0, 0), 11), ((9, 9), 30), ((2.7, 3), 30), ((0, 3), 30), ((9, 9), 11)])
@pytest.mark.parametrize("dense", [False, True])  # as on a GPU, where there are no copies, and as on a CPU
def test_rows_that_fork_go_on_each_in_its_own_way(make_model, assert_close, monkeypatch, dense, copies, most):
    """Row by row what is written: two rows fork after two tokens, so that all four share those; then one of the copies forks again."""
    monkeypatch.setattr(shared_cache, "COPIES_FROM", copies[0])
    monkeypatch.setattr(shared_cache, "COPIES_TO", copies[1])
    monkeypatch.setattr(shared_cache, "dense_keys", lambda keys: dense)
    monkeypatch.setattr(shared_cache, "STRIDE", 2)
    model = make_model()
    cache, prefixes = prefilled(model)
    branches, own, modes = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 5), draw(11, 5, 1), []
    branches = branches.with_copies() if copies == (0, 3) else branches
    came_from = {6: (4, 2), 7: (0, 2), 8: (6, 3), 9: (6, 3), 10: (2, 3)}  # row: the row and the column where it forked
    for row, (parent, column) in came_from.items():
        own[row, :column] = own[parent, :column]
    parts, rows = [], 6
    with torch.no_grad():
        for column in range(5):
            if forked := [parent for parent, at in came_from.values() if at == column]:
                memory = branches.keys.untyped_storage().data_ptr()
                branches = branches.fork(torch.tensor(forked), most=most)
                rows += len(forked)
                if copies == (0, 0):
                    assert (branches.keys.untyped_storage().data_ptr() == memory) == (column == 3)  # the first fork made room for both
                    assert branches._room.shape[-1] == 11 * branches.keys[0, 0, :, 0].numel() * 5  # not for twice the eight rows
            modes.append(branches.ahead > 0)
            assert branches.rows == rows and len(branches.lengths) == rows
            parts.append(model(own[:rows, column : column + 1], cache=branches))
            branches.advance(1)
            if column == 3:
                kept = [1, 3, 6, 7, 9, 10]  # in no order of their prefixes
                branches = branches.select(torch.tensor(kept))
                own, rows = own[kept], len(kept)
    expected = {((9, 9), 30): [0, 0, 1, 1, 1], ((2.7, 3), 30): [0, 0, 1, 0, 0], ((0, 3), 30): [1, 1, 1, 0, 0]}.get((copies, most), [0] * 5)
    assert modes == (expected if dense else [copies == (0, 3)] * 2 + [0] * 3)
    prefix_of = [*PREFIX_OF, 2, 0, 2, 2, 1]
    for place, row in enumerate(kept):
        ways = [row]  # who wrote the columns, the last first
        while ways[-1] in came_from:
            ways.append(came_from[ways[-1]][0])
        of_column = [next(way for way in ways if column >= came_from.get(way, (0, 0))[1]) for column in range(4)]
        found = torch.cat([*(parts[column][of_column[column]] for column in range(4)), parts[4][place]])
        assert_close(found, alone(model, prefixes[prefix_of[row]], own[place].tolist()))


def test_some_prefixes_of_a_cache_are_enough_and_nothing_is_copied(make_model, assert_close):
    model = make_model()
    cache, prefixes = prefilled(model)
    branches, own = SharedPrefixCache.of(cache, torch.tensor([0, 1, 1]), 3, first=1), draw(3, 3, 2)
    assert branches.prefix_keys.data_ptr() == cache.keys[:, 1:].data_ptr()
    with torch.no_grad():
        got = model(own, cache=branches)
    for row, prefix in enumerate((1, 2, 2)):
        assert_close(got[row], alone(model, prefixes[prefix], own[row].tolist()))


def test_sets_of_rows_side_by_side_equal_each_row_alone(make_model, assert_close):
    """Rows that entered at different times have different numbers of own tokens."""
    model = make_model()
    cache, prefixes = prefilled(model)
    first, second, own = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4), cache.expand(1, capacity=12), draw(9, 3, 3)
    with torch.no_grad():
        model(own[:6, :2], cache=first)
        first.advance(2)
        both = ConcatCache([first, second])
        assert both.rows == 9 and both.lengths.tolist() == [*first.lengths.tolist(), *second.lengths.tolist()]
        got = model(own[:, 2:], cache=both)
    for row in range(6):
        assert_close(got[row], alone(model, prefixes[PREFIX_OF[row]], own[row].tolist())[2:])
    for row in range(6, 9):
        assert_close(got[row], alone(model, prefixes[row - 6], own[row, 2:].tolist()))


def test_side_by_side_takes_one_token_at_a_time(make_model):
    model = make_model()
    cache, _ = prefilled(model)
    with torch.no_grad(), pytest.raises(ValueError, match="2 tokens a row"):
        model(draw(6, 2, 1), cache=ConcatCache([SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4)]))


def test_too_many_scores_for_the_memory_go_the_plain_way(make_model, assert_close, monkeypatch):
    model, results, called = make_model(), [], []
    monkeypatch.setattr(shared_cache, "shared_attention_plain", lambda *a, plain=shared_cache.shared_attention_plain: called.append(1) or plain(*a))
    for limit in (2**24, 1):
        monkeypatch.setattr(shared_cache, "SCORES_AT_ONCE", limit)
        cache, _ = prefilled(model)
        with torch.no_grad():
            results.append(model(draw(6, 4, 1), cache=SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4)))
        assert bool(called) == (limit == 1)
    assert_close(*results)


def test_a_full_cache_says_so(make_model):
    model = make_model()
    cache, _ = prefilled(model)
    branches = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 3)
    with torch.no_grad(), pytest.raises(ValueError, match="4 tokens a row, but the cache holds 3"):
        model(draw(6, 4, 1), cache=branches)


def test_rows_that_outgrow_a_sliding_window_are_refused(make_model):
    cache, _ = prefilled(make_model("mistral"))
    with pytest.raises(ValueError, match=r"up to 7 \+ 4 tokens know no sliding window of 5"):
        SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 4)


@pytest.mark.parametrize("copies", [False, True])
def test_columns_kept_end_to_end_give_the_same_however_often_they_are_laid_out_anew(make_model, assert_close, monkeypatch, copies):
    """Room for two columns at a time."""
    monkeypatch.setattr(shared_cache, "STRIDE", 2)
    model = make_model()
    cache, prefixes = prefilled(model)
    branches, own, parts, reached = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 5), draw(6, 5, 1), [], []
    branches = branches.with_copies() if copies else branches
    kept = torch.arange(6)
    with torch.no_grad():
        for column in range(5):
            if column == 3:
                kept = torch.tensor([0, 2, 3, 5])
                branches = branches.select(kept)
            parts.append(model(own[kept, column : column + 1], cache=branches))
            branches.advance(1)
            reached.append(branches.reach)
            assert branches.keys[0].is_contiguous() and branches.values[1].is_contiguous()
    assert reached == ([max(PREFIXES) + columns for columns in (1, 3, 3, 5, 5)] if copies else [2, 2, 4, 4, 5])
    for place, row in enumerate(kept.tolist()):
        found = torch.cat([part[place if len(part) == len(kept) else row] for part in parts])
        assert_close(found, alone(model, prefixes[PREFIX_OF[row]], own[row].tolist()))


def test_copies_of_prefixes_come_and_go_and_take_one_token_at_a_time(make_model, assert_close):
    """After more columns than were laid out at first, both ways."""
    model = make_model()
    cache, prefixes = prefilled(model)
    branches, own = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 30), draw(6, 30, 1)
    with torch.no_grad():
        parts = [write(model, own[:, :10], branches)]
        branches = branches.with_copies()
        assert branches.ahead == max(PREFIXES) and branches.prefix_keys.shape[1] == 0
        assert branches.prefix_keys.untyped_storage().nbytes() == branches.prefix_values.untyped_storage().nbytes() == 0  # the prompts' cache may go
        parts.append(write(model, own[:, 10:20], branches))
        with pytest.raises(ValueError, match="2 tokens a row: rows with copies of their prefixes take one at a time"):
            model(own[:, 20:22], cache=branches)
        branches._new = 0
        branches = branches.without_copies()
        assert branches.ahead == 0 and branches.prefix_keys.shape[1] == len(PREFIXES)
        parts.append(write(model, own[:, 20:], branches))
    for row, prefix in enumerate(PREFIX_OF):
        assert_close(torch.cat(parts, 1)[row], alone(model, prefixes[prefix], own[row].tolist()))


def write(model, ids: torch.Tensor, branches: SharedPrefixCache) -> torch.Tensor:
    """Logits of tokens (R, T) that rows write one at a time."""
    logits = []
    for column in range(ids.shape[1]):
        logits.append(model(ids[:, column : column + 1], cache=branches))
        branches.advance(1)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("plain, copies", [(False, False), (True, False), (False, True)])
def test_half_types_stay_near_float32(make_model, plain, copies):
    """Forty columns, five times `STRIDE`, with prefixes of several lengths."""
    model, own = make_model(), draw(6, 40, 1)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        cache, _ = prefilled(model)
        branches, parts = SharedPrefixCache.of(cache, torch.tensor(PREFIX_OF), 40), []
        branches = branches.with_copies() if copies else branches
        with torch.no_grad(), plain_paths(plain):
            for column in range(40):
                parts.append(model(own[:, column : column + 1], cache=branches).float())
                branches.advance(1)
        results.append(torch.cat(parts, 1))
    off = (results[0] - results[1]).abs()
    assert off.median() < 0.05 and off.max() < 0.1 * results[0].abs().max()
