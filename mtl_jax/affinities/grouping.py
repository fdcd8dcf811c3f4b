"""Groups tasks to train together by their affinities: the best division, or a good one of many tasks.

A group's gain for one of its tasks is the mean affinity of the others onto it (Fifty et al. 2021), and a task alone
gains 0: nothing helps or hurts it. Unlike there, groups do not overlap: each task is trained in one network.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

MAX_EXHAUSTIVE = 9  # Tasks; they can be divided in 21,147 ways, ten in 115,975.
NUM_STARTS = 100

Labels = Int[np.ndarray, ' k']


class Grouping(NamedTuple):
  """A division of tasks into groups.

  Attributes:
    labels: the group of each task, numbered by their first tasks.
    gain: the mean over tasks of what the group does to each.
    exact: whether all ways were looked at.
  """

  labels: Labels
  gain: float
  exact: bool


def gains(affinity: Float[np.ndarray, 'k k'], labels: Labels) -> Float[np.ndarray, ' k']:
  """The mean affinity of the others of its group onto each task; 0 for a task alone."""
  together = (labels[:, None] == labels[None, :]) & ~np.eye(len(labels), dtype=bool)
  return np.where(together, affinity, 0).sum(0) / np.maximum(together.sum(0), 1)


def best(affinity: Float[np.ndarray, 'k k'], *, networks: int, starts: int = NUM_STARTS, seed: int = 0) -> Grouping:
  """The division into at most so many groups with the greatest mean gain.

  All ways are looked at for up to nine tasks. For more the answer is a heuristic's: from random divisions, tasks are
  moved to another group, or two are swapped, whichever gains most, until nothing gains; the best of all these ends is
  taken. No better one is one move or swap away; a better one may exist.

  Args:
    affinity: entry `[i, j]` is that of i onto j; what is on the diagonal is not read. NaN counts as 0, not known.
    networks: the most groups.
    starts: random divisions to begin from.
    seed: of these.
  """
  pairs = np.nan_to_num(affinity) + np.nan_to_num(affinity).T  # Gains of each pair, both ways.
  np.fill_diagonal(pairs, 0)
  exact = len(pairs) <= MAX_EXHAUSTIVE
  if exact:
    ways = divisions(len(pairs), networks)
  else:
    random, groups = np.random.default_rng(seed), min(networks, len(pairs))
    ways = np.stack([_climb(pairs, random.integers(0, groups, len(pairs)), groups) for _ in range(starts)])
  totals = _totals(pairs, ways)
  best = int(np.argmax(totals))
  return Grouping(numbered(ways[best]), float(totals[best]) / len(pairs), exact)


def numbered(labels: Sequence[int] | Labels) -> Labels:
  """The same division with groups numbered 0, 1, ... by their first tasks."""
  first = {label: number for number, label in enumerate(dict.fromkeys(map(int, labels)))}
  return np.array([first[int(label)] for label in labels])


def divisions(num: int, networks: int) -> Int[np.ndarray, 'n k']:
  """All ways to divide so many tasks into at most so many groups, each once: restricted growth strings."""
  ways = np.zeros((1, 1), np.int64)
  for _ in range(1, num):
    parts = []
    for label in range(networks):
      allowed = ways[ways.max(1) + 1 >= label]
      parts.append(np.concatenate([allowed, np.full((len(allowed), 1), label)], axis=1))
    ways = np.concatenate(parts)
  return ways


def order(similarity: Float[np.ndarray, 'k k']) -> list[int]:
  """Tasks in an order in which similar ones are neighbours: the leaves of the tree of average linkage."""
  if len(similarity) == 1:
    return [0]
  values = np.nan_to_num((similarity + similarity.T) / 2)
  distance = values.max() - values
  np.fill_diagonal(distance, 0)
  tree = hierarchy.linkage(squareform(distance, checks=False), 'average', optimal_ordering=True)
  return [int(leaf) for leaf in hierarchy.leaves_list(tree)]


def _worth(within: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """The total gain of groups with this sum of pairs (each counted once) and this many tasks."""
  return np.where(sizes > 1, within / np.maximum(sizes - 1, 1), 0)


def _totals(pairs: Float[np.ndarray, 'k k'], ways: Int[np.ndarray, 'n k']) -> Float[np.ndarray, ' n']:
  """The total gain of each division: of a group half the sum of its pairs over its size less one."""
  totals = np.zeros(len(ways))
  for label in range(int(ways.max()) + 1):
    member = (ways == label).astype(np.float64)
    totals += _worth(((member @ pairs) * member).sum(1) / 2, member.sum(1))
  return totals


def _climb(pairs: Float[np.ndarray, 'k k'], start: Labels, groups: int) -> Labels:
  """Improves a division by the best move or swap, again and again, until none of them betters it."""
  labels, tasks = np.array(start), np.arange(len(pairs))
  while True:
    member = np.eye(groups)[labels]
    to_group = pairs @ member  # [k, g]: a task's pairs with each group's members.
    within, sizes = (to_group * member).sum(0) / 2, member.sum(0)
    own, own_size = to_group[tasks, labels], sizes[labels]
    worth = _worth(within, sizes)
    left = _worth(within[labels] - own, own_size - 1) - worth[labels]
    joined = _worth(within + to_group, sizes + 1) - worth
    moves = left[:, None] + joined
    moves[tasks, labels] = 0
    # A swap of a and b: a's group loses a's pairs and wins b's, but the pair of the two was counted among these.
    gained = to_group[:, labels].T - own[:, None] - pairs
    swaps = _worth(within[labels][:, None] + gained, np.broadcast_to(own_size[:, None], pairs.shape))
    swaps = swaps - worth[labels][:, None]
    swaps = np.where(labels[:, None] == labels[None, :], 0, swaps + swaps.T)
    if max(moves.max(), swaps.max()) <= 1e-12 * (1 + np.abs(pairs).max()):
      return labels
    if moves.max() >= swaps.max():
      task, group = np.unravel_index(np.argmax(moves), moves.shape)
      labels[task] = group
    else:
      a, b = np.unravel_index(np.argmax(swaps), swaps.shape)
      labels[a], labels[b] = labels[b], labels[a]
