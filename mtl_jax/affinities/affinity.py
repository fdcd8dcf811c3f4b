"""The affinity verb: the watched joint run, the transfer matrix, the suggested groups, and the files that say so."""

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax.affinities import summary, transfer, watched
from mtl_jax.data.input import mixture
from mtl_jax.errors import ConfigError, Interrupted
from mtl_jax.objectives import loss_terms
from mtl_jax.platform import atomic_write
from mtl_jax.run import workdir
from mtl_jax.training.interrupt import Interruption

log = logging.getLogger('mtl_jax')


def run(config: ConfigDict, directory: Path, *, allow_config_change: bool = False) -> dict[str, Any]:
  """Measures affinities, cosines and transfer, or what is left to measure, and writes the results.

  `directory` gets `affinity.json` and `affinity.csv`; the joint run lies in `joint/`, its
  looks in `looks/`, and finished sources in `transfer/`.

  Returns:
    The content of `affinity.json`.

  Raises:
    UserError: for bad input, a loss that is not finite, or a request to stop.
  """
  if jax.process_count() > 1:
    raise ConfigError('mtl-jax affinity runs in one process, on all of its devices; start it once')
  config = configs.load(config)
  store = mixture.open_data(config.data)
  config = workdir.with_absolute_paths(config)
  facts = workdir.DataFacts.of(store)
  names = loss_terms.names(facts.selected(config), config.objective.grain)
  if len(names) < 2:
    raise ConfigError(f'config.tasks: affinity is between losses, and {names[0]} is the only one; name more')
  with workdir.lock(directory):
    workdir.check_kind(directory, 'looks')
    workdir.check_resumable(directory, config, facts, holds='looks', allow_config_change=allow_config_change)
    if config.affinity.transfer:
      transfer.split_config(config, store)  # Refuses now what it cannot serve, not after the joint run.
    workdir.begin(directory, config, facts)
    looks = watched.train(config, directory, allow_config_change=allow_config_change)
    found = _transfer(config, store, directory) if config.affinity.transfer else None
    result = summary.summarize(names, looks, found, config=config) | workdir.provenance(store)
    workdir.write_json(directory / 'affinity.json', result)
    write_csv(directory / 'affinity.csv', result)
  return json.loads(json.dumps(result))


def _transfer(config: ConfigDict, store: Any, directory: Path) -> transfer.Transfer:
  with Interruption() as interruption:

    def stop() -> None:
      if interruption.requested():
        raise Interrupted('interrupted; finished sources are kept, and the same command goes on from there')

    return transfer.measure(config, store, directory, stop=stop)


def write_csv(path: Path, found: Mapping[str, Any]) -> None:
  """A row for each pair of source and target."""
  names: Sequence[str] = found['tasks']
  content = io.StringIO(newline='')
  writer = csv.writer(content)
  kinds = [kind for kind in ('affinity', 'cosine', 'transfer') if found[kind]]
  columns = [f'{kind}{part}' for kind in kinds for part in ('', '_stderr', '_above_noise')]
  writer.writerow(['source', 'target', *columns, 'conflict_share'])
  for i, source in enumerate(names):
    for j, target in enumerate(names):
      cells = [found[kind][part][i][j] for kind in kinds for part in ('mean', 'stderr', 'above_noise')]
      writer.writerow([source, target, *cells, found['cosine']['negative_share'][i][j]])
  atomic_write.write(path, content.getvalue())
