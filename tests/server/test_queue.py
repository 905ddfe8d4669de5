"""The queue of all clients: the same scores whatever is batched together, fair, bounded, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("prometheus_client")

from taosr1 import fast
from taosr1.judge import Judge, Score
from taosr1.judge_model import JudgeModel
from taosr1.server.errors import Refused
from taosr1.server.limits import Limits
from taosr1.server.metrics import Metrics
from taosr1.server.queue import ScoringQueue
from taosr1.server.turns import added_tokens
from taosr1.synthetic.shop import read_pool
from taosr1.task.prompt import PromptConfig

ROWS = read_pool("dev")


class Counted(Metrics):
    """Also keeps the prompts of every micro-batch: how many, and how many tokens were computed for them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, int]] = []

    def batch(self, prompts: int, tokens: int, computed: int, budget: int, seconds: float) -> None:
        super().batch(prompts, tokens, computed, budget, seconds)
        self.batches.append((prompts, computed))


def in_queue(work: Callable[[ScoringQueue, Counted], Awaitable], **limits) -> object:
    """What `work` returns, with a queue that is closed after it."""

    async def run() -> object:
        metrics = Counted()
        queue = ScoringQueue(Limits(**limits), metrics)
        try:
            return await asyncio.wait_for(work(queue, metrics), 60)
        finally:
            await queue.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def bundled() -> Judge:
    return Judge.load("bundled")


@pytest.fixture
def judge_of(make_model, tiny_tokenizer) -> Callable[..., Judge]:
    """A judge of random weights, of a family of models."""

    def make(family: str, *, plain: bool = False, style: str = "brief", seed: int = 0, **shape) -> Judge:
        shape = {"vocab_size": tiny_tokenizer.vocab_size, "max_position_embeddings": 512, **shape}
        prompt = PromptConfig("label", style, ("title", "price"))
        model = make_model(family, seed=seed, **shape)
        with torch.no_grad():  # as drawn they are so large that sums in another order differ by more
            for matrix in (parameter for parameter in model.parameters() if parameter.dim() > 1):
                matrix.mul_(0.5)
        model = JudgeModel(model, tiny_tokenizer, prompt)
        return Judge(model if plain else fast.enable(model), max_tokens_per_batch=256)

    return make


def assert_same(found: list[Score], expected: list[Score]) -> None:
    """Equal to the rounding of float32.

    1,000 pairs of the bundled student, each alone beside all in one call: probabilities differ by up to 1.9e-6, of
    99.9 % of the pairs by at most 1.2e-6. Either differs from float64 by as much.
    """
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert ours.probs == pytest.approx(theirs.probs, abs=3e-6)
        assert ours.label_mass == pytest.approx(theirs.label_mass, abs=3e-6)
        assert ours.score == pytest.approx(theirs.score, abs=3e-6)
        assert (ours.grade, ours.tier, ours.outside) == (theirs.grade, theirs.tier, theirs.outside)


# ---- The same scores -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", ["bundled", "qwen3 full", "mistral", "llama3 plain", "qwen3_moe full"])
def test_scores_are_those_of_the_batch_script_whatever_is_batched_together(case, bundled, judge_of):
    family, *how = case.split()
    style = "full" if "full" in how else "brief"
    judge = bundled if case == "bundled" else judge_of(family, plain="plain" in how, style=style)
    draw = random.Random(case)
    requests = [draw.sample(ROWS[:200], draw.choice((1, 1, 2, 5, 30))) for _ in range(40)]

    async def ask(queue: ScoringQueue, rows: list) -> list[Score]:
        await asyncio.sleep(draw.random() / 20)
        with queue.on_its_way():
            prompts = await asyncio.to_thread(judge.model.prompts, rows)
        return judge.with_outside(rows, await queue.score(judge, prompts, rows[0].query))

    async def work(queue: ScoringQueue, metrics: Counted) -> list[list[Score]]:
        found = await asyncio.gather(*(ask(queue, rows) for rows in requests))
        sizes = [prompts for prompts, _ in metrics.batches]
        assert sum(sizes) == sum(map(len, requests))
        assert max(sizes) > 2 and len(set(sizes)) > 2  # they were batched together, in several ways
        return found

    found = in_queue(work, batch_tok=2000 if style == "full" else 700)
    for rows, scores in zip(requests, found):
        assert_same(scores, judge.score_judgements(rows))


def test_prompts_of_two_judges_wait_in_one_queue_and_each_is_scored_by_its_own(judge_of):
    judges = [judge_of("qwen3", seed=seed) for seed in (1, 2)]
    prompts = judges[0].model.prompts(ROWS[:12])

    async def work(queue: ScoringQueue, _) -> list:
        calls = [queue.score(judges[number % 2], prompts[number : number + 3]) for number in range(9)]
        return await asyncio.gather(*calls)

    for number, scores in enumerate(in_queue(work)):
        assert_same(scores, judges[number % 2].score_prompts(prompts[number : number + 3]))


# ---- Fair ------------------------------------------------------------------------------------------------------------
def test_five_products_are_in_the_next_micro_batch_though_a_thousand_came_before(bundled):
    many, few = bundled.model.prompts(ROWS[:1000]), bundled.model.prompts(ROWS[1000:1005])
    begun: list[list] = []  # the prompts of every micro-batch

    class Noted(Judge):
        def score_prompts(self, prompts):
            begun.append(prompts)
            return super().score_prompts(prompts)

    judge = Noted(bundled.model)

    async def work(queue: ScoringQueue, _) -> int:
        large = asyncio.create_task(queue.score(judge, many))
        while not begun:
            await asyncio.sleep(0.001)
        running = len(begun)
        await queue.score(judge, few)
        await large
        return running

    running = in_queue(work, batch_tok=1024)
    at = {place for place, prompts in enumerate(begun) for prompt in prompts if any(prompt is own for own in few)}
    assert at <= {running, running + 1} and len(at) == 1, "the next one, or one later if that was being formed"
    assert len(begun) > 15


def test_twenty_small_requests_overtake_three_large_ones_and_none_is_left_behind(bundled):
    prompts = bundled.model.prompts(ROWS[:600])

    async def work(queue: ScoringQueue, metrics: Counted) -> tuple[list, list]:
        ended: list[str] = []

        async def ask(name: str, own: list) -> None:
            await queue.score(bundled, own)
            ended.append(name)

        large = [ask("large", prompts[200 * place : 200 * place + 200]) for place in range(3)]
        await asyncio.gather(*large, *(ask("small", prompts[place : place + 2]) for place in range(20)))
        return ended, metrics.batches

    ended, batches = in_queue(work, batch_tok=1024)
    assert ended == 20 * ["small"] + 3 * ["large"]
    assert all(tokens <= 1024 for _, tokens in batches)
    assert sum(prompts for prompts, _ in batches) == 640


def test_calls_with_the_same_query_are_scored_together(judge_of):
    judge = judge_of("qwen3", style="full", max_position_embeddings=1024)
    lamps, mugs = ([replace(row, query=query) for row in ROWS[:16]] for query in ("desk lamp", "steel travel mug"))

    async def work(queue: ScoringQueue, metrics: Counted) -> list:
        with queue.on_its_way():  # so that all of them are there before the first micro-batch
            calls = []
            for place in range(0, 16, 4):
                for rows in (lamps, mugs):
                    prompts = judge.model.prompts(rows[place : place + 4])
                    calls.append(asyncio.create_task(queue.score(judge, prompts, rows[0].query)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
        return [call.result() for call in calls], metrics.batches

    found, batches = in_queue(work, max_wait_ms=5000, batch_tok=4000)
    assert_same([score for call in found[::2] for score in call], judge.score_prompts(judge.model.prompts(lamps)))
    assert_same([score for call in found[1::2] for score in call], judge.score_prompts(judge.model.prompts(mugs)))
    assert len(batches) >= 1


def test_added_tokens_are_those_that_the_prompt_before_does_not_begin_with():
    query = list(range(20))
    assert added_tokens([[*query, 1, 2], [*query, 1, 3, 4], [*query[:15], 7], [*query[:15], 7]]) == [22, 2, 16, 16]
    assert added_tokens([[*query, 1], query, query]) == [21, 1, 1]


# ---- No longer than it must ------------------------------------------------------------------------------------------
def test_a_request_that_is_alone_does_not_wait_for_others(bundled):
    prompts = bundled.model.prompts(ROWS[:1])

    async def work(queue: ScoringQueue, _) -> float:
        await queue.score(bundled, prompts)
        begun = time.monotonic()
        await queue.score(bundled, prompts)
        return time.monotonic() - begun

    assert in_queue(work, max_wait_ms=20_000) < 5


def test_an_idle_model_waits_for_requests_that_are_being_read_but_not_for_ever(bundled):
    prompts = bundled.model.prompts(ROWS[:2])

    async def work(queue: ScoringQueue, metrics: Counted) -> list:
        with queue.on_its_way():
            first = asyncio.create_task(queue.score(bundled, prompts[:1]))
            await asyncio.sleep(0.05)
        await queue.score(bundled, prompts[1:])
        await first
        with queue.on_its_way():  # a client that sends half of a body
            await queue.score(bundled, prompts[:1])
        return [count for count, _ in metrics.batches]

    assert in_queue(work, max_wait_ms=1500) == [2, 1]


# ---- Bounded ---------------------------------------------------------------------------------------------------------
def test_a_full_queue_refuses_with_a_time_to_come_again_and_takes_requests_once_it_has_room(bundled):
    prompts = bundled.model.prompts(ROWS[:200])

    async def work(queue: ScoringQueue, _) -> list[Refused]:
        waiting = [asyncio.create_task(queue.score(bundled, prompts[:100])) for _ in range(3)]
        await asyncio.sleep(0)
        refused = []
        for _ in range(2):
            with pytest.raises(Refused) as caught:
                await queue.score(bundled, prompts[:1])
            refused.append(caught.value)
        await asyncio.gather(*waiting)
        assert queue.requests == 0
        assert len(await queue.score(bundled, prompts[:1])) == 1
        return refused

    for refused in in_queue(work, max_queue_requests=3):
        assert (refused.status, refused.retry_after_s >= 1) == (429, True)
        assert "3 requests" in refused.message


def test_the_queue_is_bounded_in_tokens_too_and_says_what_can_never_fit(bundled):
    prompts = bundled.model.prompts(ROWS[:100])
    tokens = sum(map(len, prompts[:60]))

    async def work(queue: ScoringQueue, _) -> list[int]:
        waiting, statuses = asyncio.create_task(queue.score(bundled, prompts[:60])), []
        await asyncio.sleep(0)
        for own in (prompts[:60], prompts):
            with pytest.raises(Refused) as caught:
                await queue.score(bundled, own)
            statuses.append(caught.value.status)
        await waiting
        await queue.score(bundled, prompts[:60])
        return statuses

    assert in_queue(work, max_queue_tok=tokens) == [429, 422]


def test_retry_after_is_what_the_queue_takes_at_the_measured_speed(bundled):
    prompts = bundled.model.prompts(ROWS[:800])

    async def work(queue: ScoringQueue, metrics: Counted) -> tuple[float, float]:
        calls = [asyncio.create_task(queue.score(bundled, prompts)) for _ in range(4)]
        while len(metrics.batches) < 5:
            await asyncio.sleep(0.001)
        said, begun = queue.retry_after_s(), time.monotonic()
        await asyncio.gather(*calls)
        return said, time.monotonic() - begun

    said, took = in_queue(work)
    assert took / 8 < said < max(8 * took, 1.1)  # the machine may be busy with other things; it is at least a second


# ---- Left, failed, closed --------------------------------------------------------------------------------------------
def test_what_a_client_that_left_has_not_got_scored_is_never_scored(bundled):
    prompts = bundled.model.prompts(ROWS[:1000])

    async def work(queue: ScoringQueue, metrics: Counted) -> list[int]:
        call = asyncio.create_task(queue.score(bundled, prompts))
        while not metrics.batches:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert queue.requests == 0  # its place is free at once
        before = len(metrics.batches)
        await queue.score(bundled, prompts[:5])
        return [count for count, _ in metrics.batches[before:]]

    *running, last = in_queue(work, batch_tok=1024, max_queue_tok=sum(map(len, prompts)))
    assert last == 5 and len(running) <= 1  # the one that was running when it left


@pytest.mark.parametrize("kind", ["nan", "too long"])
def test_a_poisonous_prompt_fails_its_own_request_and_no_other(kind, judge_of):
    judge = judge_of("qwen3", tie_word_embeddings=False)
    prompts = judge.model.prompts(ROWS[:12])
    used = {0, *(token for prompt in prompts for token in prompt)}  # 0 is what rows are padded with
    rare = next(token for token in range(judge.model.tokenizer.vocab_size) if token not in used)
    with torch.no_grad():
        judge.model.model.model.embed_tokens.weight[rare] = torch.nan
    poison = [*prompts[0], rare] if kind == "nan" else prompts[0] * 50

    async def work(queue: ScoringQueue, _) -> list:
        with queue.on_its_way():
            calls = [asyncio.create_task(queue.score(judge, prompts[place : place + 3])) for place in (0, 3, 6, 9)]
            calls.insert(2, asyncio.create_task(queue.score(judge, [prompts[1], poison])))
            await asyncio.sleep(0.01)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert queue.requests == 0
        return found

    found = in_queue(work, max_wait_ms=5000)
    error = found.pop(2)
    assert isinstance(error, ValueError), error
    assert ("not finite" if kind == "nan" else "max_position_embeddings") in str(error)
    assert_same([score for scores in found for score in scores], judge.score_prompts(prompts))


def test_closing_answers_what_was_accepted_accepts_nothing_more_and_ends_the_thread(bundled):
    prompts = bundled.model.prompts(ROWS[:300])

    async def run() -> tuple[list, int]:
        queue = ScoringQueue(Limits(batch_tok=1024), Metrics())
        calls = [asyncio.create_task(queue.score(bundled, prompts[place : place + 100])) for place in (0, 100, 200)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await queue.score(bundled, prompts[:1])
        found = await asyncio.gather(*calls)
        await closing
        assert not queue.alive
        return found, caught.value.status

    found, status = asyncio.run(run())
    assert status == 503
    assert_same([score for scores in found for score in scores], bundled.score_prompts(prompts))
    assert not [thread for thread in threading.enumerate() if thread.name == "model"]
