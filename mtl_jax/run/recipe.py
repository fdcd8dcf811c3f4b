"""Makes model, optimizer and objective from a config, alike for training and for restoring."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import optax
from ml_collections import ConfigDict

from mtl_jax.models import multitask, own_shapes
from mtl_jax.models.network import Network
from mtl_jax.objectives import Objective, loss_terms, options
from mtl_jax.run import optimizer
from mtl_jax.run.state import TrainState, init_state
from mtl_jax.tasks import LabelStats, Task


class Recipe(NamedTuple):
  """The parts that `init_state` and `train_step` must be given alike."""

  model: Network
  tx: optax.GradientTransformation
  objective: Objective
  ema_decay: float


def from_config(config: ConfigDict, tasks: Sequence[Task], *, steps_per_epoch: int = 1) -> Recipe:
  """Makes the recipe of a config for these tasks; `steps_per_epoch` matters to methods that count epochs."""
  names = loss_terms.names(tasks, config.objective.grain)
  return Recipe(
    model=multitask.from_config(config.model, tasks),
    tx=optimizer.from_config(config.optimizer, steps=config.train.steps),
    objective=options.from_config(config.objective, names, steps_per_epoch=steps_per_epoch),
    ema_decay=config.optimizer.ema_decay,
  )


def state_maker(
  recipe: Recipe,
  config: ConfigDict,
  tasks: Sequence[Task],
  *,
  label_stats: Mapping[str, LabelStats],
  image_size: tuple[int, int],
) -> Callable[..., TrainState]:
  """`init_state` of a config, to be jitted: it makes what a checkpoint of such a run restores into.

  Args:
    recipe: of that config and these tasks.
    config: the run's.
    tasks: that it learns.
    label_stats: of each task; a checkpoint brings its own.
    image_size: height and width in pixels.

  Raises:
    ConfigError: for a part of the user's own that fails, or gives another shape than it must.
  """
  own_shapes.check(recipe.model, config.model, tasks, image_size=image_size)
  return partial(
    init_state,
    seed=config.train.seed,
    label_stats=label_stats,
    input_shape=(*image_size, 3),
    num_losses=len(loss_terms.names(tasks, config.objective.grain)),
    **recipe._asdict(),
  )
