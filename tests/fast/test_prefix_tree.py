"""Rows that share prefixes against the plain rows: the same log-probs and gradients, fewer tokens computed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taosr1.fast import tree_attention
from taosr1.fast.decoder import use_fast_modules
from taosr1.fast.logprobs import completion_logp
from taosr1.fast.prefix_tree import make_tree
from taosr1.learning.batches import Batch, Example, collate
from taosr1.model.decoder import Decoder
from taosr1.model.logprobs import completion_logp as plain_completion_logp
from taosr1.model.lora import TARGETS, LoraConfig, add_adapters
from tests.conftest import FAMILIES


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(1, 61, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def batch_of(*groups: tuple[int, list[int]], instructions: int = 0) -> Batch:
    """Groups as (prompt length, reply lengths); all prompts begin with so many tokens of instructions."""
    return collate([
        Example([*ids_of(instructions, 7), *ids_of(prompt, 100 + number)], ids_of(reply, 10 * number + index))
        for number, (prompt, replies) in enumerate(groups)
        for index, reply in enumerate(replies)
    ])  # fmt: skip


def shop_batch() -> Batch:
    """Instructions, two queries, two or three products each, one or two replies each, in no order; two rows equal."""
    rules, queries = ids_of(9, 1), [ids_of(3, 2), ids_of(2, 3)]
    rows = [(query, product, reply) for query, products in ((0, (4, 5, 6)), (1, (7, 8))) for product in products
            for reply in (20 + product, 30)][:-1]  # fmt: skip
    examples = [Example([*rules, *queries[q], *ids_of(1 + p % 4, p)], ids_of(1 + r % 3, r)) for q, p, r in rows]
    return collate([examples[place] for place in (3, 0, 8, 5, 1, 7, 2, 6, 4, 3)])


BATCHES = {
    "one group": batch_of((12, [3, 5, 1, 4])),
    "ragged groups": batch_of((12, [3, 5]), (9, [4]), (15, [2, 2, 6, 1])),
    "pairs behind instructions": batch_of((5, [4, 6]), (9, [6, 2]), (2, [3, 3]), instructions=11),
    "rows behind instructions": batch_of((5, [2]), (9, [2]), (2, [2]), (7, [2]), instructions=20),
    "instructions, queries, products, replies": shop_batch(),
    "nothing in common": batch_of((12, [3]), (9, [5]), (4, [4])),
    "replies of one token": batch_of((12, [1, 1, 1]), (13, [1, 1])),
    "one row": batch_of((12, [5])),
    "equal rows": collate([Example(ids_of(12, 0), ids_of(4, 2))] * 4),
    "a row that another one continues": collate([
        Example(ids_of(9, 0), ids_of(6, 2)), Example(ids_of(9, 0), ids_of(6, 2)[:3]), Example(ids_of(9, 0)[:4], [5, 6])
    ]),
    "a reply that is a prompt elsewhere": collate([
        Example(ids_of(12, 0), ids_of(4, 2)), Example([*ids_of(12, 0), *ids_of(4, 2)[:2]], ids_of(4, 2)[2:])
    ]),
}  # fmt: skip


def sides(make_model, family: str, dtype: torch.dtype, **changes) -> list[tuple]:
    """The plain model with its function, and the fast ones."""
    plain, fast = make_model(family, **changes).to(dtype), use_fast_modules(make_model(family, **changes).to(dtype))
    return [(plain, plain_completion_logp), (fast, completion_logp)]


def count_tokens(model: Decoder) -> list[int]:
    """The number of tokens of every call of a model from now on."""
    tokens, hidden = [], model.hidden
    model.hidden = lambda ids, **given: tokens.append(ids.numel()) or hidden(ids, **given)
    return tokens


@pytest.fixture(params=["products", "fused kernels"])
def kernels(request, monkeypatch) -> str:
    """Attention on a CPU, and as it is on a GPU."""
    if request.param == "fused kernels":
        monkeypatch.setattr(tree_attention, "by_products", lambda value: False)
    return request.param


@pytest.fixture(params=["few large tiles", "many small tiles"])
def tiles(request, monkeypatch) -> str:
    if request.param == "many small tiles":
        monkeypatch.setattr(tree_attention, "TILE_QUERIES", 3)
        monkeypatch.setattr(tree_attention, "NUMBERS_AT_ONCE", 200)
    return request.param


def found_with(function, model: Decoder, batch: Batch) -> list[torch.Tensor]:
    """Log-probs, entropies and gradients of a sum with random weights."""
    weights = torch.randn(batch.ids.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logp, entropy = function(model, batch.ids, batch.mask, temperature=0.7, with_entropy=True)
    (logp * weights).sum().backward()
    return [logp.detach(), entropy, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_shared_log_probs_and_gradients_equal_the_plain_ones(make_model, family, name, kernels, tiles):
    plain, fast = (found_with(f, model, BATCHES[name]) for model, f in sides(make_model, family, torch.float64))
    assert len(plain) == len(fast) > 10
    for expected, got in zip(plain, fast):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BATCHES)
def test_in_float32_the_gradients_agree_to_five_digits(make_model, family, name, kernels):
    """As one vector, apart from what float32 costs the plain program itself, which float64 shows."""
    exact, *_ = (found_with(f, model, BATCHES[name]) for model, f in sides(make_model, family, torch.float64))
    found = [found_with(f, model, BATCHES[name]) for model, f in sides(make_model, family, torch.float32)]
    wanted, plain, fast = (torch.cat([x.flatten().double() for x in tensors[2:]]) for tensors in (exact, *found))
    allowed = 1e-5 * wanted.norm() + (plain - wanted).norm()
    assert (fast - plain).norm() <= allowed and (fast - wanted).norm() <= allowed


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["pairs behind instructions", "instructions, queries, products, replies"])
def test_adapters_and_recomputed_activations_have_the_plain_gradients(make_model, family, name, lora, checkpointing):
    found = []
    for model, function in sides(make_model, family, torch.float64):
        if lora:
            targets = TARGETS[:4] if "moe" in family else TARGETS  # stacked experts take no adapter
            config = LoraConfig(3, 8.0, targets=targets)
            model = add_adapters(model, config, torch.Generator().manual_seed(1)).to(torch.float64)
            generator = torch.Generator().manual_seed(2)
            for parameter in (p for p in model.parameters() if p.requires_grad):  # B is 0, and so A's gradient
                parameter.data += torch.randn(parameter.shape, generator=generator).double() * 0.1
            if function is completion_logp:
                use_fast_modules(model)
        model.activation_checkpointing = checkpointing
        found.append(found_with(function, model.train(), BATCHES[name]))
    assert len(found[0]) == len(found[1]) > 10
    for expected, got in zip(*found):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "apart", "together"),
    [
        ("one group", 4 * 16, 12 + 2 + 4 + 0 + 3),
        ("rows behind instructions", 4 * 30, 20 + (6 + 10 + 3 + 8)),
        ("pairs behind instructions", 6 * 25, 11 + (5 + 3 + 5) + (9 + 5 + 1) + (2 + 2 + 2)),
        ("equal rows", 4 * 15, 15),
        ("nothing in common", 3 * 14, 14 + 13 + 7),
        ("a row that another one continues", 3 * 14, 14 + 1),
        ("a reply that is a prompt elsewhere", 2 * 15, 15),
    ],
)
def test_what_rows_begin_with_alike_is_computed_once(make_model, name, apart, together):
    """The last token of a reply predicts nothing, and padding is not computed."""
    found = []
    for model, function in sides(make_model, "qwen3", torch.float32):
        tokens = count_tokens(model)
        function(model, BATCHES[name].ids, BATCHES[name].mask)
        found += tokens
    assert found == [apart, together]


def test_a_hidden_state_with_the_same_next_token_meets_the_head_once(make_model):
    """A prompt's end predicts the first tokens of four replies, two of them different."""
    prompt = [1, 2, 3]
    batch = collate([Example(prompt, [4]), Example(prompt, [4]), Example(prompt, [5, 6]), Example([1, 2], [3])])
    model, rows = use_fast_modules(make_model()), []
    head = model.head
    model.head = lambda hidden: rows.append(len(hidden)) or head(hidden)
    completion_logp(model, batch.ids, batch.mask)
    assert rows == [4]  # 4 and 5 after 1 2 3, 6 after 1 2 3 5, 3 after 1 2


def test_a_tree_by_hand():
    """Rows 1 2 3 4, 1 2 3 6 7 and 9 9 without their last tokens 5, 8 and 1; sorted, a row adds to the one before it."""
    batch = collate([Example([9, 9], [1]), Example([1, 2, 3], [6, 7, 8]), Example([1, 2, 3], [4, 5])])
    batch.ids[~batch.mask & (torch.arange(6) > 2)] = -100  # padding that is no token
    config = SimpleNamespace(num_attention_heads=2, sliding_window=None)
    tree = make_tree(batch.ids, batch.mask, config)
    assert tree.ids.tolist() == [[1, 2, 3, 4, 6, 7, 9, 9]] and tree.positions.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1]]
    assert tree.used == 5
    assert tree.keep.tolist() == [[2, 3, 4, 5, 7]]
    # 1 after 9 9; 6, 7, 8 after 3, 6, 7; 4, 5 after 3, 4
    assert tree.source.tolist() == [4, 0, 2, 3, 0, 1]
    seen = {}  # of every query, the tokens that it attends to
    for tile in tree.tiles.tiles:
        reals = torch.ones_like(tile.queries, dtype=torch.bool) if tile.real is None else tile.real
        for queries, keys, bias, real in zip(tile.queries, tile.keys, tile.bias[:, 0], reals):
            for query, visible in zip(queries[real].tolist(), (bias == 0)[real]):
                seen[query] = keys[visible].tolist()
    assert seen == {
        0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [0, 1, 2, 3], 4: [0, 1, 2, 4], 5: [0, 1, 2, 4, 5], 6: [6], 7: [6, 7]
    }  # fmt: skip


def test_a_batch_in_which_nothing_counts_has_a_gradient_of_zero(make_model):
    model, batch = use_fast_modules(make_model()), BATCHES["one group"]
    logp = completion_logp(model, batch.ids, torch.zeros_like(batch.mask))
    logp.sum().backward()
    assert not logp.any() and not any(p.grad.any() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_gradients_are_the_same_bits_every_time_on_several_threads(make_model, family):
    """Large enough that torch adds the gradients of a row that is read several times with several threads."""
    model = use_fast_modules(make_model(family, hidden_size=512, num_hidden_layers=1))
    batch, found, threads = batch_of((12, [20] * 8), (10, [20] * 8), instructions=8), [], torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(12):
            model.zero_grad()
            completion_logp(model, batch.ids, batch.mask).sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(grad, found[0]) for grad in found)


def test_no_scores_are_kept_for_the_backward_pass(make_model):
    """Of a row of 48 tokens and four heads they would be 9,216 numbers; the widest activation has 48 x 40."""
    model, batch, sizes = use_fast_modules(make_model()), batch_of((45, [4])), []
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in weights:
            sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        completion_logp(model, batch.ids, batch.mask)
    assert max(sizes) == 48 * 40


def test_under_autocast_gradients_are_as_close_to_the_exact_ones_as_those_of_the_plain_program(make_model):
    batch = batch_of((20, [4, 6]), (29, [6, 2]), (12, [3, 3]), instructions=15)
    (exact, function), _ = sides(make_model, "llama", torch.float64, max_position_embeddings=128)
    wanted = torch.cat([g.flatten() for g in found_with(function, exact, batch)[2:]])
    apart = []
    for model, function in sides(make_model, "llama", torch.float32, max_position_embeddings=128):
        with torch.autocast("cpu", torch.bfloat16):
            found = found_with(function, model, batch)[2:]
        apart.append(float((torch.cat([g.flatten() for g in found]).double() - wanted).norm() / wanted.norm()))
    assert 1e-3 < apart[0] < 0.5 and apart[1] < 1.3 * apart[0]


def test_attention_by_tiles_has_the_gradient_of_its_formula(monkeypatch):
    monkeypatch.setattr(tree_attention, "TILE_QUERIES", 2)
    generator = torch.Generator().manual_seed(0)
    token_at = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 5], [6, 7, 0, 0]])
    rows, columns = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 3, 2, 3, 0, 1])
    made = tree_attention.make_tiles(rows, columns, token_at, 4, window=3)
    query, key, value = (torch.randn(8, h, 3, dtype=torch.float64, generator=generator) for h in (4, 2, 2))
    inputs = [x.requires_grad_() for x in (query, key, value)]
    assert torch.autograd.gradcheck(lambda *x: tree_attention.tree_attention(*x, made), inputs)


no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_gpu)])
def test_gradients_of_what_hundreds_of_rows_share_are_whole_sums(kernels, device):
    """One value for 600 queries of weight 1: its gradient is 600. A GPU that adds in bfloat16 stops at 256."""
    rows, columns = torch.arange(600, device=device), torch.zeros(600, dtype=torch.int64, device=device)
    ones = torch.ones(600, 1, 8, dtype=torch.bfloat16, device=device)
    value = ones[:1].clone().requires_grad_()
    tiles = tree_attention.make_tiles(rows, columns, columns[:, None], 1, window=None)
    tree_attention.tree_attention(ones, ones[:1], value, tiles).sum().backward()
    assert value.grad.eq(600).all()


def test_any_rows_give_the_log_probs_and_gradients_of_the_plain_program(make_model):
    """Of three tokens, so that rows begin alike, continue and repeat one another; with any tiles and windows."""
    hypothesis = pytest.importorskip("hypothesis")
    given, strategies = hypothesis.given, hypothesis.strategies
    rows = strategies.lists(
        strategies.tuples(
            strategies.lists(strategies.integers(1, 3), min_size=1, max_size=8),
            strategies.lists(strategies.integers(1, 3), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=7,
    )
    models = {family: sides(make_model, family, torch.float64) for family in ("llama", "mistral")}
    sizes = strategies.integers(1, 5), strategies.sampled_from([9, 2**20])

    @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
    @given(rows, strategies.sampled_from(sorted(models)), *sizes)
    def check(rows, family, queries, numbers):
        batch, found = collate([Example(prompt, reply) for prompt, reply in rows]), []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tree_attention, "TILE_QUERIES", queries)
            patch.setattr(tree_attention, "NUMBERS_AT_ONCE", numbers)
            for model, function in models[family]:
                model.zero_grad()
                found.append([x.clone() for x in found_with(function, model, batch)])
        for expected, got in zip(*found, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)

    check()


def test_every_token_of_any_rows_is_computed_once():
    hypothesis = pytest.importorskip("hypothesis")
    tokens = hypothesis.strategies.lists(hypothesis.strategies.integers(0, 2), min_size=2, max_size=9)
    config = SimpleNamespace(num_attention_heads=1, sliding_window=None)

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
    @hypothesis.given(hypothesis.strategies.lists(tokens, min_size=1, max_size=8))
    def check(rows):
        batch = collate([Example(row[:1], row[1:]) for row in rows])
        tree = make_tree(batch.ids, batch.mask, config)
        beginnings = {tuple(row[:end]) for row in rows for end in range(1, len(row))}
        assert tree.ids.shape == tree.positions.shape == (1, len(beginnings))
        assert sorted(tree.positions[0].tolist()) == sorted(len(beginning) - 1 for beginning in beginnings)
        assert tree.source.shape == (sum(len(row) - 1 for row in rows),)

    check()
