"""Losses of coupled tasks: the targets that one task implies for another, divergences, and implied labels.

Formulas are those of Kollias, Sharmanska and Zafeiriou (2024), "Distribution Matching for Multi-Task Learning of
Classification Tasks", recalled: what is ambiguous there is an option here, and the docstring says which reading it is.
Every distribution is over classes in the last axis; a binary target has the classes no and yes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32


def expected(log_source: Float[Array, 'b e'], table: Float[Array | np.ndarray, 'e c']) -> Float[Array, 'b c']:
  """The source's expectation of a target: q(t | x) = sum over e of p(e | x) r(t | e)."""
  return jnp.exp(log_source) @ table


def clipped(q: Float[Array | np.ndarray, 'b c'], eps: float) -> Float[Array, 'b c']:
  """Probabilities in [eps, 1 - eps], summing to 1 again (of two classes they still do)."""
  q = jnp.clip(q, eps, 1 - eps)
  return q / q.sum(-1, keepdims=True)


def cross_entropy(log_p: Float[Array, 'b c'], log_q: Float[Array, 'b c']) -> Float[Array, ' b']:
  """-sum p log q. At p = q its gradient is zero in q, but not in p, which it drives to q's likeliest class."""
  return -(jnp.exp(log_p) * log_q).sum(-1)


def one_sided(log_p: Float[Array, 'b c'], log_q: Float[Array, 'b c']) -> Float[Array, ' b']:
  """-p(yes) log q(yes): as the paper writes it. It drives p to 0, whatever q is; more than two classes: all but the
  first."""
  return -(jnp.exp(log_p) * log_q)[..., 1:].sum(-1)


def kl(log_p: Float[Array, 'b c'], log_q: Float[Array, 'b c']) -> Float[Array, ' b']:
  """KL(p || q) = sum p (log p - log q): stationary at p = q in both. The default."""
  return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def reverse_kl(log_p: Float[Array, 'b c'], log_q: Float[Array, 'b c']) -> Float[Array, ' b']:
  """KL(q || p), stationary at p = q in both; with q stopped its gradient is that of q as a soft label."""
  return kl(log_q, log_p)


def jensen_shannon(log_p: Float[Array, 'b c'], log_q: Float[Array, 'b c']) -> Float[Array, ' b']:
  """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: at most log 2, stationary at p = q in both."""
  log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
  return (kl(log_p, log_m) + kl(log_q, log_m)) / 2


DIVERGENCES = {
  'kl': kl,
  'reverse_kl': reverse_kl,
  'jensen_shannon': jensen_shannon,
  'cross_entropy': cross_entropy,
  'one_sided': one_sided,
}


def match(
  log_p: Float[Array, 'b c'], q: Float[Array, 'b c'], *, divergence: str, stop_gradient: str, eps: float
) -> Float[Array, ' b']:
  """The divergence of a target's own prediction p from what its source expects, q, clipped to [eps, 1 - eps].

  Args:
    divergence: of DIVERGENCES.
    stop_gradient: `p` or `q`, which then does not move; or `none`.
  """
  log_q = jnp.log(clipped(q, eps))
  if stop_gradient == 'p':
    log_p = jax.lax.stop_gradient(log_p)
  if stop_gradient == 'q':
    log_q = jax.lax.stop_gradient(log_q)
  return DIVERGENCES[divergence](log_p, log_q)


def posterior(
  log_prior: Float[Array | np.ndarray, ' e'],
  evidence: Sequence[Float[Array, 'b _']],
  tables: Sequence[Float[Array | np.ndarray, '_ _']],
  *,
  eps: float,
) -> Float[Array, 'b e']:
  """The source as its targets see it: softmax over e of log prior + sum over targets and classes of p(c) log r(c | e).

  With labels in place of predictions (one-hot rows; rows of zeros where there is none) it is Bayes' rule for targets
  that are independent given the class; with predictions its mean-field version. Ours: the paper has no such direction.
  """
  each = [p @ jnp.log(clipped(table, eps)).T for p, table in zip(evidence, tables, strict=True)]
  return jax.nn.softmax(sum(each, jnp.asarray(log_prior)))


def mean_score(
  labels: Int32[Array, 'b t'],
  known: Bool[Array, 'b t'],
  weights: Float[Array | np.ndarray, 't e'],
  *,
  binary_source: bool,
) -> Float[Array, 'b e']:
  """The paper's soft co-annotation: softmax over e of sum w_ie y_i / sum w_ie, sums over the units that have labels.

  The scores lie in [0, 1], so of many classes none gets much. A class none of whose units has a label scores 0. Of a
  yes-or-no source only yes has units, and no scores 1 minus its score: a reading of ours.

  Args:
    labels: 1 where the unit is there.
    weights: r(i | e).
  """
  known = known.astype(jnp.float32)
  total = known @ weights
  score = (jnp.where(known > 0, labels, 0).astype(jnp.float32) @ weights) / jnp.where(total > 0, total, 1.0)
  if binary_source:
    score = jnp.stack([jnp.where(total[:, 1] > 0, 1 - score[:, 1], 0.0), score[:, 1]], axis=1)
  return jax.nn.softmax(score)


def implied_targets(
  source: Int32[Array, ' b'], table: Float[Array | np.ndarray, 'e c']
) -> tuple[Int32[Array, ' b'], Float[Array, ' b']]:
  """Hard co-annotation of a target: the class that the source's class makes more likely than not, and how likely.

  The weight is 0 where it makes none so. Of yes-or-no targets only yes is implied, as in the paper.
  """
  rows = jnp.asarray(table)[source]
  classes = rows.argmax(-1).astype(jnp.int32)
  weight = rows.max(-1)
  implied = (weight >= 0.5) & ((classes > 0) | (table.shape[-1] > 2))
  return classes, jnp.where(implied, weight, 0.0)


def implied_source(
  labels: Int32[Array, 'b t'],
  known: Bool[Array, 'b t'],
  weights: Float[Array | np.ndarray, 't e'],
  prior: Float[Array | np.ndarray, ' e'],
) -> tuple[Int32[Array, ' b'], Bool[Array, ' b']]:
  """Hard co-annotation of the source: the class all of whose own units are labelled as there.

  A unit is a class's own if r(i | e) is at least 0.5, and above its share under the prior of the classes: one that is
  likelier still in the other classes speaks against this one. Of several such classes the one with the most units, none
  where two have as many; a class without a unit is never implied.
  """
  weights = jnp.asarray(weights)
  likely = ((weights >= 0.5) & (weights > (weights @ jnp.asarray(prior))[:, None])).astype(jnp.float32)
  needed = likely.sum(0)
  there = ((labels == 1) & known).astype(jnp.float32) @ likely
  size = jnp.where((there == needed) & (needed > 0), needed, 0.0)
  best = size.max(-1)
  return size.argmax(-1).astype(jnp.int32), (best > 0) & ((size == best[:, None]).sum(-1) == 1)
