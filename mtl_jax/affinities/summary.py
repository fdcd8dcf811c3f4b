"""Summarizes measurements as `affinity.json`: matrices with their errors, the maps' order, and the suggested groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from mtl_jax.affinities import grouping, noise
from mtl_jax.affinities.lookahead import Lookahead
from mtl_jax.affinities.transfer import Transfer
from mtl_jax.platform.json_file import finite

NUM_RESAMPLES = 50  # Of the look-aheads, for how sure a group is.
RESAMPLE_STARTS = 10  # Of the search for each of these.


def summarize(
  names: Sequence[str],
  looks: Lookahead,
  seconds: Float[np.ndarray, ' t'],
  found: Transfer | None,
  *,
  config: ConfigDict,
) -> dict[str, Any]:
  """Makes the content of affinity.json, without the description of data and machine.

  Args:
    names: of the losses.
    looks: all look-aheads of the joint run.
    seconds: that each of them took; the first with its compilation.
    found: the transfer matrix, where it was asked for.
    config: the run's.
  """
  affinities, cosines = looks.affinities(), looks.cosines()
  negative = np.where(np.isfinite(cosines), np.nan_to_num(cosines) < 0, np.nan)
  mean = noise.mean(affinities)
  return {
    'tasks': list(names),
    'order': [names[i] for i in grouping.order(noise.mean(cosines))],
    'grain': config.objective.grain,
    'looks': {
      'count': len(seconds),
      'every_steps': config.affinity.every_steps,
      'step_size': config.affinity.step_size,
      'steps': config.train.steps,
      'seconds': {
        'all': float(seconds.sum()),
        'first': float(seconds[0]),
        'each': float(np.median(seconds[min(1, len(seconds) - 1) :])),
      },
    },
    'affinity': _matrix(affinities),
    # A step on these losses raises them, on average: it is too long to say what they do to others.
    'overshot': [name for name, own in zip(names, mean.diagonal(), strict=True) if own < 0],
    'cosine': _matrix(cosines) | {'negative_share': finite(noise.mean(negative))},
    'transfer': None if found is None else _transfer(found),
    'together': float(np.mean(grouping.gains(np.nan_to_num(mean), np.zeros(len(names), int)))),
    'groupings': _groupings(names, affinities, config.affinity.networks),
  }


def _matrix(values: Float[np.ndarray, 't k k']) -> dict[str, Any]:
  """A matrix that was measured again and again: means, their errors, which are above noise, and reliability."""
  mean, (stderr, degrees) = noise.mean(values), noise.standard_error(values)
  above = noise.above(mean, stderr, degrees=degrees).tolist()
  return {
    'mean': finite(mean),
    'stderr': finite(stderr),
    'above_noise': above,
    'split_half': noise.split_half(values),
  }


def _transfer(found: Transfer) -> dict[str, Any]:
  """The matrix's part, and what features of an untrained network are worth."""
  (*gains, random), (*errors, _), (*means, random_loss) = *found.gains(), found.means()
  return {
    'mean': finite(gains),
    'stderr': finite(errors),
    'above_noise': noise.above(np.array(gains), np.array(errors)).tolist(),
    'random': finite(random),
    'loss': finite(means),
    'random_loss': finite(random_loss),
    'steps': found.steps,
    'seconds': float(found.seconds.sum()),
    'seconds_each': float(np.median(found.seconds)),
  }


def _groupings(names: Sequence[str], affinities: Float[np.ndarray, 't k k'], most: int) -> list[dict[str, Any]]:
  """The best division into at most 1, 2, ... networks, what it should gain, and how sure it is.

  The greatest gain of many ways is partly luck. So it is also estimated honestly: chosen on every other look-ahead,
  measured on the rest, both ways round. How sure a group is, is the share of resampled look-aheads under which two of
  its tasks are still together, over all its pairs.
  """

  def mean(rows: Any) -> Float[np.ndarray, 'k k']:
    return np.nan_to_num(noise.mean(affinities[rows]))

  num = len(affinities)
  whole, halves = mean(slice(None)), [mean(slice(first, None, 2)) for first in (0, 1)]
  resampled = [mean(rows) for rows in np.random.default_rng(0).integers(0, num, (NUM_RESAMPLES, num))]
  result = []
  for networks in range(1, min(most, len(names)) + 1):
    chosen = grouping.best(whole, networks=networks)
    members = [np.flatnonzero(chosen.labels == label).tolist() for label in range(chosen.labels.max() + 1)]
    by_half = [grouping.best(half, networks=networks).labels for half in halves]
    held_out = [grouping.gains(half, labels).mean() for half, labels in zip(halves[::-1], by_half, strict=True)]
    again = np.array([grouping.best(one, networks=networks, starts=RESAMPLE_STARTS).labels for one in resampled])
    together = (again[:, :, None] == again[:, None, :]).mean(0)
    pairs = [together[np.ix_(own, own)][np.triu_indices(len(own), 1)] for own in members]
    result.append(
      {
        'networks': networks,
        'groups': [[names[i] for i in own] for own in members],
        'sure': [float(own.mean()) if len(own) else None for own in pairs],
        'expected_gain': chosen.gain,
        'held_out_gain': float(np.mean(held_out)) if num > 1 else None,
        'gain_by_task': dict(zip(names, finite(grouping.gains(whole, chosen.labels)), strict=True)),
        'method': 'exhaustive' if chosen.exact else 'local search',
      }
    )
  return result
