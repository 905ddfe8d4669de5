"""pass@n: every estimate against an exhaustive count of what it estimates."""

import itertools
import math

import pytest

from taosr1.sampling.passn import grade_prior, pass_at_n, pass_curve, prior_pass_at_n


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_n_is_the_share_of_subsets_with_a_right_reply(num_samples):
    """Every way to take n of the replies, counted one by one, for every number of right ones."""
    for num_correct in range(num_samples + 1):
        right = [index < num_correct for index in range(num_samples)]
        for n in range(1, num_samples + 1):
            subsets = list(itertools.combinations(right, n))
            assert pass_at_n(num_samples, num_correct, n) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_n_is_unbiased_and_the_plug_in_is_not():
    """The estimate's mean over all outcomes of s = 5 draws, p = 0.3, is exactly 1 - 0.7^3; the plug-in's is lower."""
    s, p, n = 5, 0.3, 3
    chances = [math.comb(s, c) * p**c * (1 - p) ** (s - c) for c in range(s + 1)]
    truth = 1 - (1 - p) ** n
    assert sum(w * pass_at_n(s, c, n) for c, w in enumerate(chances)) == pytest.approx(truth)
    assert sum(w * (1 - (1 - c / s) ** n) for c, w in enumerate(chances)) < truth - 0.02


def test_pass_at_n_by_hand():
    """4 replies, 1 right: pass@1 1/4, pass@2 1/2, pass@4 1. 4 replies, 2 right: pass@2 1 - 1/6."""
    assert [pass_at_n(4, 1, n) for n in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert pass_at_n(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_n(4, 0, 4) == 0.0


def test_large_counts_stay_exact():
    assert pass_at_n(10_000, 1, 5_000) == pytest.approx(0.5)


def test_the_curve_is_the_mean_over_prompts_and_never_falls():
    """Prompts with 0, 2 and 4 right of 4: pass@1 (0 + 1/2 + 1)/3 = 1/2, pass@2 (0 + 5/6 + 1)/3, then 2/3 twice."""
    curve = pass_curve([0, 2, 4], 4)
    assert curve == pytest.approx([1 / 2, 11 / 18, 2 / 3, 2 / 3])
    assert curve == sorted(curve)
    assert pass_curve([0, 2, 4], 4, max_n=2) == curve[:2]


def test_guessing_from_a_prior_equals_counting_every_guess():
    """All 4^n guesses weighted by the prior, for every gold grade."""
    prior, grades, n = (0.1, 0.4, 0.2, 0.3), [1, 2, 2, 4], 3
    expected = 0.0
    for gold in grades:
        for guesses in itertools.product((1, 2, 3, 4), repeat=n):
            if gold in guesses:
                expected += math.prod(prior[guess - 1] for guess in guesses) / len(grades)
    assert prior_pass_at_n(prior, grades, n) == pytest.approx(expected)


def test_guessing_by_hand():
    """Uniform guesses: 1 - (3/4)^5 = 0.76270, whatever the gold grades: what a pass@5 of 0.8 has to be read against.
    The paper's shares 9/36/5/50: sum p (1 - (1 - p)^5) = 0.85087."""
    assert prior_pass_at_n([0.25] * 4, [1, 4, 4], 5) == pytest.approx(1 - 0.75**5)
    assert prior_pass_at_n([0.25] * 4, [3], 1) == 0.25
    grades = [1] * 9 + [2] * 36 + [3] * 5 + [4] * 50
    prior = grade_prior(grades)
    assert prior == pytest.approx((0.09, 0.36, 0.05, 0.5))
    expected = sum(p * (1 - (1 - p) ** 5) for p in (0.09, 0.36, 0.05, 0.5))
    assert prior_pass_at_n(prior, grades, 5) == pytest.approx(expected) == pytest.approx(0.85087, abs=1e-5)


def test_a_grade_the_prior_never_names_is_never_passed():
    assert prior_pass_at_n((1.0, 0.0, 0.0, 0.0), [2, 3], 5) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_n(4, 5, 1), "num_correct is 5"),
        (lambda: pass_at_n(4, -1, 1), "num_correct is -1"),
        (lambda: pass_at_n(4, 1, 5), "n is 5"),
        (lambda: pass_at_n(4, 1, 0), "n is 0"),
        (lambda: pass_curve([], 4), "no prompts"),
        (lambda: grade_prior([]), "empty"),
        (lambda: grade_prior([4, 5]), "row 1 is 5"),
        (lambda: prior_pass_at_n([0.5] * 4, [1], 2), "4 shares"),
        (lambda: prior_pass_at_n([0.5, 0.5], [1], 2), "4 shares"),
        (lambda: prior_pass_at_n([0.4] * 4, [1], 2), "4 shares"),
        (lambda: prior_pass_at_n([-0.1, 0.5, 0.3, 0.3], [1], 2), "4 shares"),
        (lambda: prior_pass_at_n([0.25] * 4, [1], 0), "n is 0"),
        (lambda: prior_pass_at_n([0.25] * 4, [0], 1), "row 0 is 0"),
    ],
)
def test_wrong_counts_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
