"""The transfer matrix: a model trained on one task alone, its features frozen, and heads of all tasks learned on them.

In the manner of Zamir et al. 2018, "Taskonomy". The features are computed once; since nothing that is shared learns,
the heads of all tasks can be trained side by side and each ends as it would alone. Heads on the features of a network
with random weights are beside them. Every source that is done is a file of its own.
"""

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from mtl_jax.affinities.sources import Sources
from mtl_jax.config import with_fields
from mtl_jax.data.input import mixture
from mtl_jax.data.input.mixture import DataSet
from mtl_jax.errors import ConfigError
from mtl_jax.metrics import draws
from mtl_jax.models import multitask
from mtl_jax.objectives import loss_terms
from mtl_jax.platform import npz
from mtl_jax.platform.progress_bar import bar
from mtl_jax.run.workdir import DataFacts

log = logging.getLogger('mtl_jax')

RANDOM = '(random)'  # The source that was trained on nothing: the network's first weights.


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Losses of validation examples, of heads on the features of each source.

  Attributes:
    loss: for each source, and the random one last, each target's sum of losses on an example, `[k + 1, k, n]`.
    labels: how many labels of each target an example has, `[k, n]`.
    identity: who is on each example, -1 where unknown, `[n]`.
    steps: that each source, and the heads, were trained.
    seconds: that each source took with its heads, `[k + 1]`, compilation included.
  """

  loss: Float[np.ndarray, 's k n']
  labels: np.ndarray
  identity: np.ndarray
  steps: int
  seconds: np.ndarray

  def means(self) -> Float[np.ndarray, 's k']:
    """Each target's mean loss over its labels, for each source."""
    return self.loss.sum(2) / np.maximum(self.labels.sum(1), 1)

  def gains(self) -> tuple[Float[np.ndarray, 's k'], Float[np.ndarray, 's k']]:
    """`1 - L[i, j] / L[j, j]`, and its standard error over people: what source i's features are worth to j.

    0 is as good as j's own features, in relation to whose loss the error is taken.
    """
    own = np.einsum('jjn->jn', self.loss[:-1])
    mean_own = self.means().diagonal()
    difference = own[None] - self.loss  # [s, k, n]
    mean = difference.sum(2) / np.maximum(self.labels.sum(1), 1)
    apart = difference - mean[..., None] * self.labels[None]
    people = draws.clusters(self.identity)
    by_person = np.zeros((*apart.shape[:2], people.max() + 1))
    for source in range(len(apart)):
      np.add.at(by_person[source].T, people, apart[source].T)
    error = np.sqrt(np.square(by_person).sum(2)) / np.maximum(self.labels.sum(1), 1)
    scale = np.where(mean_own > 0, mean_own, np.nan)
    return mean / scale, error / scale


@dataclasses.dataclass(frozen=True)
class SourceStore:
  """A folder of finished sources, each a file."""

  directory: Path

  def path(self, source: str) -> Path:
    return self.directory / f'{source.replace("/", "_")}.npz'

  def put(self, source: str, losses: Float[np.ndarray, 'k n'], *, seconds: float) -> None:
    """Writes a source's losses, whole or not at all."""
    npz.write(self.path(source), {'losses': losses, 'seconds': seconds}, root=self.directory.parent)

  def get(self, source: str) -> tuple[np.ndarray, float]:
    """Raises CheckpointError for a file that is not as it was written."""
    found = npz.read(self.path(source), names=('losses', 'seconds'), advice='remove it, and it is made again')
    return found['losses'], float(found['seconds'])


def measure(config: ConfigDict, store: DataSet, directory: Path, *, stop: Callable[[], None]) -> Transfer:
  """Trains all sources and heads that are not in `directory/transfer` yet.

  Args:
    config: of the joint model; its grain says what a task is.
    store: the prepared set.
    directory: the working directory.
    stop: called between dispatches; may raise to stop.

  Raises:
    UserError: for settings that this cannot serve, a loss that is not finite, or what `stop` raises.
  """
  own = split_config(config, store)
  sources = Sources(own, store, directory, stop=stop)
  results = SourceStore(directory / 'transfer')
  names = [task.name for task in sources.tasks]
  todo = [name for name in (*names, RANDOM) if not results.path(name).exists()]
  log.info('transfer: %d sources of %d steps, %d done', len(names) + 1, own.train.steps, len(names) + 1 - len(todo))
  with bar(len(todo), description='transfer', unit='source') as progress:
    for name in todo:
      losses, seconds = sources.run(name if name != RANDOM else None)
      results.put(name, losses, seconds=seconds)
      progress.update(1)
  found = [results.get(name) for name in (*names, RANDOM)]
  val = sources.val
  return Transfer(
    loss=np.stack([losses for losses, _ in found]).astype(np.float64),
    labels=np.stack([val.mask[name].sum(1) for name in names]),
    identity=mixture.identities(store, val.example_id),
    steps=own.train.steps,
    seconds=np.array([seconds for _, seconds in found]),
  )


def split_config(config: ConfigDict, store: DataSet) -> ConfigDict:
  """The configuration with every loss as a task of its own, and as many steps as a source is trained."""
  tasks = DataFacts.of(store).selected(config)
  for task in tasks:
    head = multitask.head_of(config.model, task)
    if head.spatial or head.dense:
      raise ConfigError(
        f'config.model.head of {task.name} reads maps, and transfer keeps pooled features; choose another head, or '
        '--config.affinity.transfer=false'
      )
  names = ','.join(loss_terms.names(tasks, config.objective.grain))
  steps = config.affinity.transfer_steps or config.train.steps
  return with_fields(config, tasks=names, objective__grain='tasks', train__steps=steps)
