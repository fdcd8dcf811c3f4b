"""Summarizes measurements as `affinity.json`: matrices with their errors, the maps' order, and the suggested groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from mtl_jax.affinities import grouping, noise, watched
from mtl_jax.affinities.transfer import Transfer
from mtl_jax.affinities.watched import Looks

NUM_RESAMPLES = 50  # Of the looks, for how sure a group is.
RESAMPLE_STARTS = 10  # Of the search for each of these.


def summarize(names: Sequence[str], looks: Looks, found: Transfer | None, *, config: ConfigDict) -> dict[str, Any]:
  """The JSON, but for what the data and the machine were.

  Args:
    names: of the losses.
    looks: of the joint run.
    found: the transfer matrix, where it was asked for.
    config: the run's.
  """
  affinities, cosines = looks.affinities(), looks.cosines()
  cosine = _matrix(cosines)
  with np.errstate(invalid='ignore'):
    negative = np.where(np.isfinite(cosines), cosines < 0, np.nan)
  cosine['negative_share'] = _plain(noise.mean(negative))
  mean = noise.mean(affinities)
  return {
    'tasks': list(names),
    'order': [names[i] for i in grouping.order(noise.mean(cosines))],
    'grain': config.objective.grain,
    'looks': {
      'count': len(looks.steps),
      'every_steps': config.affinity.every_steps,
      'step_size': config.affinity.step_size,
      'steps': config.train.steps,
      'seconds': watched.seconds(looks),
    },
    'affinity': _matrix(affinities),
    # A step on these losses raises them, on average: it is too long to say what they do to others.
    'overshot': [name for name, own in zip(names, mean.diagonal(), strict=True) if own < 0],
    'cosine': cosine,
    'transfer': None if found is None else _transfer(found),
    'together': float(np.mean(grouping.gains(np.nan_to_num(mean), np.zeros(len(names), int)))),
    'groupings': _groupings(names, affinities, config.affinity.networks),
  }


def _matrix(values: Float[np.ndarray, 't k k']) -> dict[str, Any]:
  """A matrix that was measured at every look: means, their errors, which are above noise, and reliability."""
  found = noise.over_looks(values)
  return {
    'mean': _plain(found.mean),
    'stderr': _plain(found.stderr),
    'above_noise': noise.above(found.mean, found.stderr, degrees=found.degrees).tolist(),
    'split_half': noise.split_half(values),
  }


def _transfer(found: Transfer) -> dict[str, Any]:
  """The matrix's part, and what features of a random network are worth."""
  gains, errors = found.gains()
  tested = noise.above(gains[:-1], errors[:-1])
  return {
    'mean': _plain(gains[:-1]),
    'stderr': _plain(errors[:-1]),
    'above_noise': tested.tolist(),
    'random': _plain(gains[-1]),
    'loss': _plain(found.means()[:-1]),
    'random_loss': _plain(found.means()[-1]),
    'steps': found.steps,
    'seconds': float(found.seconds.sum()),
    'seconds_each': float(np.median(found.seconds)),
  }


def _groupings(names: Sequence[str], affinities: Float[np.ndarray, 't k k'], most: int) -> list[dict[str, Any]]:
  """The best division into at most 1, 2, ... networks, what it should gain, and how sure it is.

  The greatest gain of many ways is partly luck. So it is also had honestly: chosen on every other look, measured on
  the rest, both ways round. How sure a group is, is the share of resampled looks under which two of its tasks are
  still together, over all its pairs.
  """
  whole, halves = _mean(affinities), [_mean(affinities[first::2]) for first in (0, 1)]
  rows = np.random.default_rng(0).integers(0, len(affinities), (NUM_RESAMPLES, len(affinities)))
  resampled = [_mean(affinities[one]) for one in rows]
  result = []
  for networks in range(1, min(most, len(names)) + 1):
    chosen = grouping.best(whole, networks=networks)
    by_half = [grouping.best(half, networks=networks).labels for half in halves]
    held_out = [grouping.gains(half, labels).mean() for half, labels in zip(halves[::-1], by_half, strict=True)]
    again = np.array([grouping.best(one, networks=networks, starts=RESAMPLE_STARTS).labels for one in resampled])
    together = (again[:, :, None] == again[:, None, :]).mean(0)
    result.append(
      {
        'networks': networks,
        'groups': [[names[i] for i in members] for members in _members(chosen.labels)],
        'sure': [_sure(together, members) for members in _members(chosen.labels)],
        'expected_gain': chosen.gain,
        'held_out_gain': float(np.mean(held_out)) if len(affinities) > 1 else None,
        'gain_by_task': dict(zip(names, _plain(grouping.gains(whole, chosen.labels)), strict=True)),
        'method': 'exhaustive' if chosen.exact else 'local search',
      }
    )
  return result


def _mean(affinities: Float[np.ndarray, 't k k']) -> Float[np.ndarray, 'k k']:
  """Means over looks, 0 where there is none."""
  return np.nan_to_num(noise.mean(affinities))


def _members(labels: grouping.Labels) -> list[np.ndarray]:
  return [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]


def _sure(together: Float[np.ndarray, 'k k'], members: np.ndarray) -> float | None:
  """The mean share over a group's pairs; None for a task alone."""
  rows, columns = np.triu_indices(len(members), 1)
  return float(together[members[rows], members[columns]].mean()) if len(rows) else None


def _plain(values: np.ndarray) -> Any:
  """Lists of JSON's numbers; what is not known is None."""
  if np.ndim(values):
    return [_plain(part) for part in values]
  return float(values) if np.isfinite(values) else None
