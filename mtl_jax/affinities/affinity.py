"""Runs `mtl-jax affinity`: look-aheads along a joint run, the transfer matrix, and suggested groups of tasks."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtl_jax.affinities import lookahead, summary, transfer
from mtl_jax.errors import ConfigError, Interrupted
from mtl_jax.objectives import loss_terms
from mtl_jax.run import workdir
from mtl_jax.training.interrupt import Interruption


def run(config: ConfigDict, directory: Path, *, allow_config_change: bool = False) -> dict[str, Any]:
  """Measures affinities, cosines and transfer, or what is left to measure, and writes the results.

  `directory` gets `affinity.json` and `affinity.csv`; the joint run lies in `joint/`, its look-aheads in `looks/`, and
  finished sources in `transfer/`.

  Returns:
    The content of `affinity.json`.

  Raises:
    UserError: for bad input, a loss that is not finite, or a request to stop.
  """
  if jax.process_count() > 1:
    raise ConfigError('mtl-jax affinity runs in one process, on all of its devices; start it once')
  config, store, facts = workdir.opened(config)
  names = loss_terms.names(facts.selected(config), config.objective.grain)
  if len(names) < 2:
    raise ConfigError(f'config.tasks: affinity is between losses, and {names[0]} is the only one; name more')
  if config.affinity.transfer:
    transfer.split_config(config, store)  # Refuses now what it cannot serve, not after the joint run.
  with workdir.resumed(directory, config, facts, holds='looks', allow_config_change=allow_config_change):
    looks, seconds = lookahead.train(config, directory, allow_config_change=allow_config_change)
    found = None
    if config.affinity.transfer:
      with Interruption() as interruption:
        found = transfer.measure(config, store, directory, stop=lambda: _stop_if(interruption.requested()))
    result = summary.summarize(names, looks, seconds, found, config=config) | workdir.provenance(store)
    workdir.write_json(directory / 'affinity.json', result)
    workdir.write_csv(directory / 'affinity.csv', list(_rows(result)))
  return json.loads(json.dumps(result))


def _stop_if(requested: bool) -> None:
  if requested:
    raise Interrupted('interrupted; finished sources are kept, and the same command goes on from there')


def _rows(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  """Rows of affinity.csv, one for each pair of source and target."""
  parts = {'mean': '', 'stderr': '_stderr', 'above_noise': '_above_noise'}
  for i, source in enumerate(found['tasks']):
    for j, target in enumerate(found['tasks']):
      cells = {
        f'{kind}{suffix}': found[kind][part][i][j]
        for kind in ('affinity', 'cosine', 'transfer')
        if found[kind]
        for part, suffix in parts.items()
      }
      yield {'source': source, 'target': target, **cells, 'conflict_share': found['cosine']['negative_share'][i][j]}
