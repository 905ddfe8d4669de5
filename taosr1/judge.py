"""The front door: a judge with the beta and the temperature it is served with.

    from taosr1 import Judge
    judge = Judge.load("runs/mine")
    judge.score("desk lamp", ["LED desk lamp", "Steel mug"])    # [Score(grade=4, tier='Good', ...), Score(...)]
    judge.rank("desk lamp", ["Steel mug", "LED desk lamp"])     # [{"corpus_id": 1, "score": 0.98, ...}, {...}]
    judge.explain("desk lamp", "LED desk lamp").text

`examples/guide/python.md` shows more. The scripts of infer/ are thin on top of the same functions.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from taosr1.judge_model import JudgeModel, judge_folder, load_judge
from taosr1.runtime.progress import Bar, listening
from taosr1.serving.calibration import apply_temperature
from taosr1.serving.deployed import ANSWERS_FIRST, DEFAULT_BETA, open_judge, stored_beta, stored_temperature
from taosr1.serving.explain import Explanation, explain
from taosr1.serving.inputs import Pair, Product, is_product, judgements_of, listed
from taosr1.serving.outside import World
from taosr1.serving.samples import Sample, parsed, sample_replies
from taosr1.serving.scorer import Score, score_prompts
from taosr1.serving.stream import Event, Explained, Scored, stream_explanation
from taosr1.serving.tiering import cumulative_tier
from taosr1.task.judgement import Judgement

__all__ = ["Explanation", "Judge", "JudgeModel", "Judgement", "Ranked", "Sample", "Score", "load_judge"]

ROWS_AT_A_TIME = 1024  # encoded, sorted by length and scored together


class Ranked(dict):
    """One product of a ranking: the dict that CrossEncoder.rank gives, with more in it, and attributes to read it by.

    Keys: corpus_id (place in the list that was given), score, grade, tier, probs, label_mass, outside, and text (the
    product as given) with return_documents=True.
    """

    def __init__(self, index: int, product: Any, result: Score, *, with_text: bool) -> None:
        super().__init__({"corpus_id": index, **vars(result)})
        if with_text:
            self["text"] = product
        self.index, self.product, self.result = index, product, result

    @property
    def score(self) -> float:
        return self.result.score

    @property
    def grade(self) -> int:
        return self.result.grade

    @property
    def tier(self) -> str:
        return self.result.tier


class Judge:
    """A loaded judge. `beta` decides its tiers (CumPT), `temperature` scales its label probabilities.

    Products are titles, dicts of columns (those of a data file: title, brand, price, category, attributes,
    description; other names are ignored) or `Judgement`s. `fields` are the columns that this judge's prompt shows.

    Threads: one judge may be shared. A lock lets one call at a time use the model, for at most 1,024 pairs, so results
    are right but no call gets faster: hand over many pairs at once instead.
    """

    def __init__(
        self, model: JudgeModel, *, name: str = "", beta: float = DEFAULT_BETA, temperature: float = 1.0,
        world: World | None = None, max_tokens_per_batch: int = 16384,
    ) -> None:  # fmt: skip
        """Around a model that is loaded already; `Judge.load` does it from a folder.

        world: what the judge has learned (`World.load` of its folder), so that pairs outside of it are found.
        max_tokens_per_batch: tokens per forward pass; changes memory and speed only.
        Raises: ValueError for a beta outside (0, 1], or a temperature that is not a finite number above 0.
        """
        cumulative_tier([], beta)
        apply_temperature([], temperature)
        self.model, self.name, self.beta, self.temperature = model, name, beta, temperature
        self.world, self.max_tokens_per_batch = world or World(), max_tokens_per_batch
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, path_or_name: str | Path = "", *, device: str = "cpu", dtype: str = "float32", plain: bool = False,
        beta: float | None = None, temperature: float | None = None, max_tokens_per_batch: int = 16384,
    ) -> Judge:  # fmt: skip
        """The judge of a run folder, a checkpoint, a Hugging Face folder or a hub id ("ORG/NAME").

        path_or_name: "" is the newest finished run under runs/ that answers first, else the bundled student, which
            "bundled" names.
        device, dtype: as of `--device` and `--dtype` of infer/score.py ("cuda", "bfloat16", "float8", "int8", ...).
        plain: without the fast engine. beta: None takes the one stored beside the weights (tiering.json), else 0.5.
        temperature: None takes the stored one (calibration.json), else 1; 1 leaves the probabilities unscaled. A beta
            belongs to a temperature, so where another one is stored, give beta too.
        Raises: FileNotFoundError and ValueError naming the folder or setting.
        """
        settings = {"dtype": dtype, "device": device, "plain": plain}
        try:
            name, model = open_judge(str(path_or_name), orders=ANSWERS_FIRST, **settings)
            limits = {"max_tokens_per_batch": max_tokens_per_batch}
            return cls.serving(name, model, beta=beta, temperature=temperature, **limits)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(str(error).removeprefix("--")) from error

    @classmethod
    def serving(
        cls, name: str, model: JudgeModel, *, beta: float | None = None, temperature: float | None = None,
        max_tokens_per_batch: int = 16384,
    ) -> Judge:  # fmt: skip
        """Around what `open_judge` returned, with what is stored beside its weights where nothing is given.

        A thinker has no label probabilities, so neither number means anything to it.
        Raises: ValueError for a stored number that cannot be, or a stored beta that belongs to another temperature.
        """
        limits = {"max_tokens_per_batch": max_tokens_per_batch, "world": World.load(judge_folder(name))}
        if model.prompt.order == "pre-cot":
            return cls(model, name=name, **limits)
        if temperature is None:
            temperature = stored_temperature(name) or 1.0
        apply_temperature([], temperature)  # refuses what is no temperature, before beta is compared with it
        if beta is None:
            beta = stored_beta(name, temperature) or DEFAULT_BETA
        return cls(model, name=name, beta=beta, temperature=temperature, **limits)

    def __repr__(self) -> str:
        served = f"beta={self.beta:.4g}, temperature={self.temperature:.4g}"
        return f"Judge({self.name!r}, order={self.order!r}, fields={self.fields}, {served})"

    @property
    def order(self) -> str:
        """Of its reply: "label", "post-cot" (label, then reasons) or "pre-cot" (a thinker: reasons, then label)."""
        return self.model.prompt.order

    @property
    def fields(self) -> tuple[str, ...]:
        """The product columns that its prompt shows, or its evidence is made of, beside the query."""
        return self.model.prompt.columns

    @overload
    def score(self, query_or_pairs: str, products: Product, *, progress: bool = ...) -> Score: ...
    @overload
    def score(self, query_or_pairs: str, products: Iterable[Product], *, progress: bool = ...) -> list[Score]: ...
    @overload
    def score(
        self, query_or_pairs: tuple[str, Product] | Mapping[str, Any] | Judgement, *, progress: bool = ...
    ) -> Score: ...
    @overload
    def score(self, query_or_pairs: Iterable[Pair], *, progress: bool = ...) -> list[Score]: ...
    def score(self, query_or_pairs: Any, products: Any = None, *, progress: bool = False) -> Any:
        """Grade, tier, label probabilities and label mass, from one prefill a pair.

        score(query, products) and score(pairs) give a list in the order given; score(query, product) and score(pair)
        one `Score`. A pair is (query, product), a dict with "query", or a `Judgement`.
        Equal to what infer/score.py writes for the same rows. progress: shows a bar on stderr.
        Raises: ValueError naming the pair or product that cannot be read ("pair 3: query is empty", counted from 0),
            and for a thinker, which has no label probabilities.
        """
        rows, single = judgements_of(query_or_pairs, products)
        scores = self.score_judgements(rows, progress=progress)
        return scores[0] if single else scores

    def score_judgements(self, rows: Sequence[Judgement], *, progress: bool = False) -> list[Score]:
        """`score` for rows that are checked already, as the readers of data files return them."""
        self._need_probabilities()
        scores: list[Score] = []
        bar = Bar(total=len(rows), desc="score", unit="pair", disable=not progress)
        with bar, listening(bar.part) if progress else nullcontext():  # else who listens already goes on listening
            for start in range(0, len(rows), ROWS_AT_A_TIME):
                chunk = list(rows[start : start + ROWS_AT_A_TIME])
                scores += self.with_outside(chunk, self.score_prompts(self.model.prompts(chunk)))
                bar.update(len(scores) - start)
        return scores

    def score_prompts(self, prompts: Sequence[Sequence[int]]) -> list[Score]:
        """`score` for prompts as token ids (`judge.model.prompts`), all of them at once."""
        self._need_probabilities()
        served = {"beta": self.beta, "temperature": self.temperature}
        with self._lock:
            return score_prompts(self.model, prompts, **served, max_tokens_per_batch=self.max_tokens_per_batch)

    def with_outside(self, rows: Sequence[Judgement], scores: Sequence[Score]) -> list[Score]:
        """The scores of these rows' prompts, with `outside` filled in: `score_prompts` does not know the words."""
        return [replace(score, outside=self._outside(row, score)) for row, score in zip(rows, scores, strict=True)]

    def predict(
        self, pairs: Any, batch_size: int | None = None, show_progress_bar: bool | None = None, *,
        convert_to_numpy: bool = True, convert_to_tensor: bool = False,
    ) -> Any:  # fmt: skip
        """Scores in [0, 1] alone, as CrossEncoder.predict of sentence-transformers gives them.

        Returns: float32 array (N,), or one float for one pair; a tensor or a list as CrossEncoder's flags say.
        batch_size: has no effect, batches are made by tokens (`max_tokens_per_batch`).
        """
        found = self.score(pairs, progress=bool(show_progress_bar))
        if isinstance(found, Score):
            return found.score
        values = np.array([score.score for score in found], dtype=np.float32)
        if convert_to_tensor:
            return torch.from_numpy(values)
        return values if convert_to_numpy else values.tolist()

    def rank(
        self, query: str, products: Iterable[Product] | None = None, top_k: int | None = None,
        return_documents: bool = False, *, documents: Iterable[Product] | None = None, batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Ranked]:  # fmt: skip
        """The products, best score first; of equal scores the one that was given first.

        Choice: the shape of CrossEncoder.rank (sentence-transformers), a list of dicts with "corpus_id", "score" and,
        with return_documents, "text". Each dict also holds "grade", "tier", "probs" and "label_mass", and has
        attributes: `.index`, `.product`, `.score`, `.grade`, `.tier`.
        top_k: the number of products to return (None: all). documents: CrossEncoder's name for products. batch_size: no
            effect, as in `predict`.
        Raises: ValueError as `score`, for one product in place of several, and for a negative top_k.
        """
        products = documents if products is None else products
        if products is None or is_product(products):
            raise ValueError(f"products is {products!r:.60}, expected a list of products")
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
            raise ValueError(f"top_k is {top_k!r}, expected an integer of 0 or more, or None for all")
        given = listed(products, "products")  # a generator can be read once
        rows, _ = judgements_of(query, given)
        scores = self.score_judgements(rows, progress=bool(show_progress_bar))
        order = sorted(range(len(rows)), key=lambda place: -scores[place].score)[:top_k]  # stable
        return [Ranked(place, given[place], scores[place], with_text=return_documents) for place in order]

    def explain(self, query_or_pair: Any, product: Any = None, *, max_new_tokens: int = 128) -> Explanation:
        """Grade, tier, score, probabilities and the five steps of the reasoning of one pair.

        A thinker reasons first: it has a grade and steps, and None for what is computed from probabilities. A judge
        that was trained on labels alone has no steps.
        Raises: ValueError as `score`, and for several products.
        """
        row = self._one(query_or_pair, product, "explain")
        limits = {"max_new_tokens": _positive(max_new_tokens, "max_new_tokens")}
        with self._lock:
            found = explain(self.model, row, beta=self.beta, temperature=self.temperature, **limits)
        return replace(found, outside=self._outside(row, found))

    def explain_stream(self, query_or_pair: Any, product: Any = None, *, max_new_tokens: int = 128) -> Iterator[Event]:
        """`explain` as events, each computed when it is asked for (`taosr1/serving/stream.py`).

        `Scored` comes after the prefill, then a `Token` at a time, a `Step` as its line is complete, and `Explained`.
        The model is free for other calls between two of them.
        """
        row = self._one(query_or_pair, product, "explain")
        limits = {"max_new_tokens": _positive(max_new_tokens, "max_new_tokens")}
        events = stream_explanation(self.model, row, beta=self.beta, temperature=self.temperature, **limits)
        while True:
            with self._lock:
                event = next(events, None)
            if event is None:
                return
            if isinstance(event, Scored):
                event = Scored(replace(event.score, outside=self._outside(row, event.score)))
            elif isinstance(event, Explained):
                found = event.explanation
                event = Explained(replace(found, outside=self._outside(row, found)))
            yield event

    def sample(
        self, query_or_pair: Any, product: Any = None, *, n: int = 5, temperature: float = 1.0, top_k: int = 0,
        top_p: float = 1.0, max_new_tokens: int = 128, seed: int = 0,
    ) -> list[Sample]:  # fmt: skip
        """n sampled replies to one pair, parsed; equal seeds give equal replies.

        temperature: of sampling, not of the label probabilities; 0 takes the most probable token, so n must be 1.
        Raises: ValueError as `explain`, and for a setting out of range.
        """
        row = self._one(query_or_pair, product, "sample")
        if temperature == 0 and _positive(n, "n") > 1:
            raise ValueError("temperature 0 gives n equal replies: raise it, or n=1")
        draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "max_new_tokens": max_new_tokens}
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed is {seed!r}, expected an integer")
        generator = torch.Generator().manual_seed(seed)
        with self._lock:
            replies = sample_replies(self.model, [row], samples=_positive(n, "n"), generator=generator, **draw)
        return [parsed(reply, self.order) for reply in replies]

    def _one(self, query_or_pair: Any, product: Any, what: str) -> Judgement:
        rows, single = judgements_of(query_or_pair, product)
        if not single:
            raise ValueError(f"{what} takes one product, this is a list of {len(rows)}: call it for each")
        return rows[0]

    def _outside(self, row: Judgement, found: Score | Explanation) -> str:
        return self.world.reason(row, self.fields, found.label_mass)

    def _need_probabilities(self) -> None:
        if self.order == "pre-cot":
            raise ValueError(
                f"{self.name or 'this judge'} reasons before it answers (pre-cot), so it has no label probabilities: "
                "use explain or sample, or load a judge that answers first"
            )


def _positive(value: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1")
    return value
