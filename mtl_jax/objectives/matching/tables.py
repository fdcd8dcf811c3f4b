"""Relatedness tables r(target | source) from labels: counted, with Laplace smoothing, where both are labelled."""

import numpy as np
from jaxtyping import Bool, Float, Int


def counted(
  source: Int[np.ndarray, ' n'],
  target: Int[np.ndarray, ' n'],
  *,
  known: Bool[np.ndarray, ' n'],
  shape: tuple[int, int],
  smoothing: float,
) -> Float[np.ndarray, 'e c']:
  """r(c | e) = (n_ec + s) / (n_e + s C) over the rows where both are known; s is the smoothing.

  With s = 0 a class of the source without a row is a row of 1 / C.
  """
  counts = np.zeros(shape)
  np.add.at(counts, (np.asarray(source)[known], np.asarray(target)[known]), 1)
  counts += smoothing
  total = counts.sum(1, keepdims=True)
  return np.where(total > 0, counts / np.where(total > 0, total, 1), 1 / shape[1])


def relevance(table: Float[np.ndarray, 'e c'], prior: Float[np.ndarray, ' e']) -> float:
  """The share of the target's entropy that the source explains, I(E; T) / H(T), from 0 (unrelated) to 1 (settles it).

  0 for a target that never varies.
  """
  marginal = prior @ table
  whole = _entropy(marginal)
  return float(1 - prior @ _entropy(table) / whole) if whole > 1e-12 else 0.0


def _entropy(p: np.ndarray) -> np.ndarray:
  """Entropy in nats, over the last axis."""
  return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)
