"""Significance of differences between arms: paired tests over seeds, intervals, Holm's adjustment, verdicts, power.

Two questions are answered, and they are not the same:

- The *p-value* is of a paired t-test over seeds on the test images there are: would other seeds give the same answer
  on these images? Adjusted over tasks (Holm 1979), it alone decides the verdict.
- The *interval* also lets the test images vary: where does the difference lie for other seeds and other people?
  It is of one task, not adjusted.

Where the two disagree the result says so in words (`disagreement`); the verdict stays that of the p-value. Both hold
for the one training split that all replicas saw: nothing here knows how another training split would have turned out.
"""

import dataclasses
import functools

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05  # The family-wise rate at which verdicts are given.
CONFIDENCE = 0.95
POWER = 0.8
HELPS, HURTS, NO_EVIDENCE = 'helps', 'hurts', 'no evidence'
# Differences that vary by less than this, relative to the values they are between, vary by rounding only. One image
# more or less in the largest test split moves a macro accuracy by 1e-6.
_ROUNDING = 1e-12


@dataclasses.dataclass(frozen=True)
class Interval:
  """Interval of a mean difference, and the parts of its width.

  Attributes:
    low: lower end.
    high: upper end.
    seeds: standard error from seeds.
    images: standard error from test images; None where no resamples were given.
    degrees_of_freedom: of the t quantile; infinite where no component of the variance was estimated from few values.
  """

  low: float
  high: float
  seeds: float
  images: float | None
  degrees_of_freedom: float


def paired_p_value(arm: np.ndarray, reference: np.ndarray) -> np.ndarray:
  """Two-sided p-values `[...]` of paired t-tests over the last axis, seeds.

  Differences that are all zero give 1. Differences that are all the same but not zero make t infinite and its p-value
  0, a certainty that a handful of seeds cannot give: the t-test's assumption, a normal spread, has failed. They get the
  p-value of the exact sign-flip test instead, 2^(1-S), the smallest it has.

  Args:
    arm: values `[..., S]`, all finite.
    reference: values of the same seeds, `[..., S]`.

  Returns:
    p-values; NaN where there is one seed only.
  """
  differences, flat = _differences(arm, reference)
  num_seeds = differences.shape[-1]
  if num_seeds < 2:
    return np.full(differences.shape[:-1], np.nan)
  mean = differences.mean(-1)
  error = np.where(flat, 1.0, differences.std(-1, ddof=1)) / np.sqrt(num_seeds)
  p_value = 2 * stats.t.sf(np.abs(mean / error), num_seeds - 1)
  return np.where(flat, np.where(mean == 0, 1.0, 2.0 ** (1 - num_seeds)), p_value)


def interval(
  arm: np.ndarray,
  reference: np.ndarray,
  *,
  resampled: tuple[np.ndarray, np.ndarray] | None = None,
  num_clusters: int = 0,
) -> Interval | None:
  """The 95 % interval of the mean difference, over seeds and test images together.

  Seeds and test images are crossed: every replica is tested on the same images. With a_s what seed s does, c what the
  images do to all seeds alike, e_s what they do to seed s alone,

      d_s = delta + a_s + c + e_s,      Var(mean d) = (var_a + var_e) / S + var_c.

  The spread over seeds, s^2, estimates var_a + var_e, for c is common to all and cancels. The variance of the seeds'
  mean in a bootstrap over images estimates var_c + var_e / S, so adding it to s^2 / S would count var_e / S twice. The
  mean *covariance* between two different seeds over the same resamples estimates var_c alone:

      Var(mean d) = s^2 / S + max(0, mean over s != s' of Cov_b(d_s, d_s')),

  the variance of Obuchowski and Rockette (1995) for readers (here seeds) by cases (here images), with the degrees of
  freedom of Hillis (2007, Stat. Med. 26:596), which are Satterthwaite's; `C - 1` are those of the second term. The
  bootstrap over C clusters is too narrow by (C - 1) / C, which is put right.
  In simulated studies (tests/significance_test.py) it covers the truth in 94-95 % with 5 or 10 seeds and 60
  people, in 92 % with only 2 seeds or only 15 people.

  Args:
    arm: values `[S]`, all finite.
    reference: values of the same seeds, `[S]`.
    resampled: the same two over the same resamples of the test images, `[B, S]` each; a resample in which either is
      not finite is left out. None leaves the test images as they are.
    num_clusters: how many clusters of images were resampled.

  Returns:
    None where nothing can be said: one seed only, or differences that are the same for all seeds, not zero, with no
    spread over images to judge them by.
  """
  differences, flat = _differences(arm, reference)
  num_seeds = len(differences)
  if num_seeds < 2:
    return None
  mean = float(differences.mean())
  from_seeds = 0.0 if flat else float(differences.var(ddof=1)) / num_seeds
  from_images = None if resampled is None else _shared_variance(resampled[0] - resampled[1], num_clusters)
  variance = from_seeds + (from_images or 0.0)
  if variance == 0 and mean != 0:
    return None
  parts = [(from_seeds, num_seeds - 1), (from_images or 0.0, num_clusters - 1)]
  uncertainty = sum(part**2 / freedom for part, freedom in parts if part > 0)
  freedom = variance**2 / uncertainty if uncertainty else float('inf')
  half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
  images = None if from_images is None else from_images**0.5
  return Interval(mean - half, mean + half, from_seeds**0.5, images, freedom)


def holm(p_values: np.ndarray) -> np.ndarray:
  """Holm's step-down adjusted p-values over the last axis (Holm 1979, Scand. J. Stat. 6:65).

  A NaN, a test that could not be made, stays NaN and still counts as one of the family.
  """
  p_values = np.asarray(p_values, np.float64)
  filled = np.where(np.isnan(p_values), 1.0, p_values)
  order = np.argsort(filled, axis=-1)
  steps = np.take_along_axis(filled, order, -1) * np.arange(filled.shape[-1], 0, -1)
  adjusted = np.empty_like(filled)
  np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1.0), -1)
  return np.where(np.isnan(p_values), np.nan, adjusted)


def verdict(mean_difference: float | None, p_adjusted: float | None, *, higher_is_better: bool) -> str:
  """Verdict of an adjusted p-value on an arm against the reference."""
  if mean_difference is None or p_adjusted is None or not p_adjusted < ALPHA:
    return NO_EVIDENCE
  return HELPS if (mean_difference > 0) == higher_is_better else HURTS


def disagreement(verdict: str, ci95: tuple[float, float] | list[float] | None) -> str | None:
  """Says where the interval and the verdict differ; None where they agree."""
  if verdict == NO_EVIDENCE:
    excludes_zero = ci95 is not None and (ci95[0] > 0 or ci95[1] < 0)
    return (
      'the interval, of this task alone, excludes 0; adjusted over tasks the p-value is too large'
      if excludes_zero
      else None
    )
  if ci95 is None:
    return 'no interval could be computed'
  includes_zero = ci95[0] <= 0 <= ci95[1]
  return 'found on these test images; for other images the interval includes 0' if includes_zero else None


@functools.cache
def detectable_effect(num_seeds: int, *, alpha: float = ALPHA, power: float = POWER) -> float | None:
  """The mean difference, in standard deviations of the paired differences, that a paired t-test finds with `power`.

  Two-sided at `alpha`, from the noncentral t distribution (Cohen 1988, chapter 2). None with fewer than two seeds.
  """
  if num_seeds < 2:
    return None
  freedom = num_seeds - 1
  critical = stats.t.isf(alpha / 2, freedom)

  def missing(effect: float) -> float:
    # The other tail, finding it with the wrong sign, is no success (and scipy has NaN for it far out).
    return power - float(stats.nct.sf(critical, freedom, effect * num_seeds**0.5))

  high = 1.0
  while missing(high) > 0:
    high *= 2
  return float(optimize.root_scalar(missing, bracket=(0.0, high), xtol=1e-9).root)


def detectable_difference(arm: np.ndarray, reference: np.ndarray, *, alpha: float) -> float | None:
  """The smallest true difference, in the metric's unit, that these seeds would have shown with 80 % power.

  The spread of the paired differences `[S]` is taken for the true one, so with few seeds this is itself uncertain.
  None with fewer than two seeds, and where the differences have no spread.
  """
  differences, flat = _differences(arm, reference)
  effect = detectable_effect(len(differences), alpha=alpha)
  return None if effect is None or flat else effect * float(differences.std(ddof=1))


def _differences(arm: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Differences `[..., S]`, 0 where they are mere rounding, and whether they have no spread over seeds, `[...]`."""
  arm, reference = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
  if arm.shape != reference.shape:
    raise ValueError(f'paired values have shapes {arm.shape} and {reference.shape}')
  rounding = _ROUNDING * np.maximum(np.abs(arm), np.abs(reference)).max(-1, keepdims=True, initial=0)
  differences = arm - reference
  differences = np.where(np.abs(differences) <= rounding, 0.0, differences)
  spread = differences.max(-1, initial=-np.inf) - differences.min(-1, initial=np.inf)
  return differences, spread <= rounding[..., 0]


def _shared_variance(resampled: np.ndarray, num_clusters: int) -> float | None:
  """The mean covariance of different seeds' differences over resamples `[B, S]`, at least 0."""
  resampled = resampled[np.isfinite(resampled).all(-1)]
  num_seeds = resampled.shape[-1]
  if len(resampled) < 2 or num_clusters < 2:
    return None
  covariance = np.cov(resampled, rowvar=False)
  between = (covariance.sum() - np.trace(covariance)) / (num_seeds * (num_seeds - 1))
  return max(float(between), 0.0) * num_clusters / (num_clusters - 1)
