"""pass@n: how often at least one of n sampled replies is right, and what guessing alone would reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

from taosr1.task.grades import GRADES


def pass_at_n(num_samples: int, num_correct: int, n: int) -> float:
    """Unbiased estimate of P(at least one of n replies is right) from num_samples replies, num_correct of them right.

    The share of all n-subsets of the sampled replies that hold a right one: 1 - C(s - c, n) / C(s, n). The plug-in
    1 - (1 - c/s)^n is biased low where s is not much larger than n.

    Raises: ValueError unless 0 <= num_correct <= num_samples and 1 <= n <= num_samples.
    Source: Chen et al. 2107.03374, eq. 1.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct is {num_correct}, expected 0 to num_samples = {num_samples}")
    if not 1 <= n <= num_samples:
        raise ValueError(f"n is {n}, expected 1 to num_samples = {num_samples}: draw more samples for a larger n")
    # comb is exact and 0 where fewer than n replies are wrong.
    return 1.0 - math.comb(num_samples - num_correct, n) / math.comb(num_samples, n)


def pass_curve(num_correct: Sequence[int], num_samples: int, max_n: int | None = None) -> list[float]:
    """pass@1 .. pass@max_n, each the mean over prompts; max_n is num_samples where it is not given.

    Raises: ValueError for no prompts or counts outside 0 to num_samples.
    """
    if len(num_correct) == 0:
        raise ValueError("pass@n of no prompts is undefined: num_correct is empty")
    max_n = num_samples if max_n is None else max_n
    return [
        math.fsum(pass_at_n(num_samples, int(right), n) for right in num_correct) / len(num_correct)
        for n in range(1, max_n + 1)
    ]


def grade_prior(grades: Sequence[int]) -> tuple[float, ...]:
    """The share of each grade 1..4 among `grades`: the label marginal a guesser would draw from.

    Raises: ValueError for no grades or a grade outside 1-4.
    """
    _check_grades(grades)
    return tuple(sum(grade == value for value in grades) / len(grades) for grade in GRADES)


def prior_pass_at_n(prior: Sequence[float], grades: Sequence[int], n: int) -> float:
    """pass@n of guessing: n labels drawn from `prior` without looking at the pair, mean over the gold `grades`.

    A pair of gold grade g is passed with 1 - (1 - prior[g])^n. With four labels this is high: it is what pass@5 has
    to be read against. `prior` is the model's own label marginal, or `grade_prior(grades)` for the best-informed guess.

    Raises: ValueError for a prior that is not four shares of at most 1 in total, a grade outside 1-4, or n < 1.
    """
    _check_grades(grades)
    if n < 1:
        raise ValueError(f"n is {n}, expected at least 1")
    if len(prior) != len(GRADES) or not all(0 <= share <= 1 for share in prior) or sum(prior) > 1 + 1e-6:
        raise ValueError(f"prior must be {len(GRADES)} shares, of grades 1..4, at most 1 in total, got {list(prior)}")
    return math.fsum(1.0 - (1.0 - prior[grade - 1]) ** n for grade in grades) / len(grades)


def _check_grades(grades: Sequence[int]) -> None:
    if len(grades) == 0:
        raise ValueError("grades is empty")
    for row, grade in enumerate(grades):
        if grade not in GRADES:
            raise ValueError(f"grade of row {row} is {grade}, expected one of {GRADES}")
