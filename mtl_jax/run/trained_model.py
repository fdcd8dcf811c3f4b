"""Restores the model of a run from its working directory, on whatever devices there are."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax.errors import CheckpointError
from mtl_jax.models.network import Network
from mtl_jax.platform import sharding
from mtl_jax.run import checkpoint, own_parts, recipe
from mtl_jax.run.checkpoint import Checkpoints
from mtl_jax.run.workdir import DataFacts, check_kind, read
from mtl_jax.tasks import LabelStats, Task

log = logging.getLogger('mtl_jax')


@dataclasses.dataclass(frozen=True)
class TrainedModel:
  """A model restored for evaluation, on whatever devices there are here.

  Attributes:
    step: of the checkpoint.
    variables: the weights to evaluate, the averaged ones where the run kept them.
  """

  config: ConfigDict
  facts: DataFacts
  model: Network
  mesh: Mesh
  step: int
  variables: Mapping[str, Any]
  label_stats: Mapping[str, LabelStats]

  @property
  def tasks(self) -> tuple[Task, ...]:
    return self.facts.tasks


def restore(workdir: Path, *, step: int | None = None, allow_code: bool = False) -> TrainedModel:
  """The model of a run, at the step that was best on validation unless another is asked for.

  `allow_code` allows parts of its user's own that this user has not run before: see `own_parts`.
  """
  if allow_code:
    own_parts.allow(workdir)
  config, facts = read(workdir)
  config = own_parts.located(workdir, config)
  if not (workdir / 'checkpoints').is_dir():
    check_kind(workdir, 'checkpoints')
    raise CheckpointError(f'--workdir: {workdir} holds no checkpoint yet; go on with mtl-jax train')
  facts = dataclasses.replace(facts, tasks=facts.selected(config))
  checkpoints = Checkpoints(workdir)
  try:
    if step is None:
      progress = checkpoints.progress()
      checkpoints.check(progress.step)
      step = progress.best_step or progress.step
    checkpoints.check(step)
    if kept := checkpoints.data(step):  # Which nobody can have changed unnoticed.
      own = DataFacts.from_json(kept, place=workdir / 'checkpoints' / str(step), advice=checkpoint.ANOTHER)
      if own != facts:
        log.warning(
          'warning: %s: dataset.json or config.json is not of step %d, whose own facts are taken', workdir, step
        )
      facts = own
    chosen = facts.tasks
    made, mesh = recipe.from_config(config, chosen), sharding.make_mesh(model=_model_devices(config))
    label_stats = {task.name: task.empty_stats() for task in chosen}
    make_state = recipe.state_maker(made, config, chosen, label_stats=label_stats, image_size=facts.image_size)
    like = checkpoint.abstract_state(make_state, sharding.of_state(mesh, make_state))
    restored = checkpoints.restore(like, step=step)
  finally:
    checkpoints.close()
  assert restored is not None  # A step that is not there has raised.
  state = restored[0]
  return TrainedModel(config, facts, made.model, mesh, step, state.eval_variables, state.label_stats)


def _model_devices(config: ConfigDict) -> int:
  """Number of devices to divide parameters over here: as in training, or 1 where there are not as many."""
  asked = config.train.model_devices
  return 1 if jax.local_device_count() % asked else asked
