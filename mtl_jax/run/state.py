"""The training state: parameters, statistics, averages, optimizer and objective; and its initialization."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int32

from mtl_jax.kinds import is_on
from mtl_jax.models import own_weights
from mtl_jax.models.network import Network, split
from mtl_jax.objectives import Objective
from mtl_jax.tasks import LabelStats


class TrainState(struct.PyTreeNode):
  """Everything that training changes, and what is needed to read the model's outputs.

  Attributes:
    step: number of optimizer steps taken.
    variables: the model's `params` and `batch_stats`, and `frozen` where the model has stages that do not learn.
    average: exponential moving averages of the first two; None when the config keeps none.
    optimizer: optax's state.
    objective: the objective's state.
    label_stats: for each task.
  """

  step: Int32[Array, '']
  variables: Mapping[str, Any]
  average: Mapping[str, Any] | None
  optimizer: optax.OptState
  objective: Any
  label_stats: Mapping[str, LabelStats]

  @property
  def eval_variables(self) -> Mapping[str, Any]:
    """The weights to evaluate: the averaged ones where they are kept."""
    return self.variables if self.average is None else {**self.variables, **self.average}


def init_state(
  seed: int,
  *,
  model: Network,
  tx: optax.GradientTransformation,
  objective: Objective,
  label_stats: Mapping[str, LabelStats],
  input_shape: tuple[int, ...],
  ema_decay: float,
  num_losses: int | None = None,
  pretrained_weights: Mapping[str, Any] | None = None,
) -> TrainState:
  """The state before the first step; a function of seed and weights alone, so it can be jitted with shardings.

  Args:
    input_shape: of an image, `(h, w, 3)`, or of what frozen stages made of it.
    num_losses: how many the objective balances, by default one a task.
    pretrained_weights: arrays of a model, or of a backbone, as `start_weights.load` gives them.
  """
  images = jnp.zeros((1, *input_shape), jnp.float32)
  variables = model.init(jax.random.key(seed), images)
  if pretrained_weights is not None:
    variables = own_weights.place(variables, pretrained_weights)
  learned = {'params': variables['params'], 'batch_stats': variables.get('batch_stats', {})}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    variables={**variables, **learned},
    average=jax.tree.map(jnp.copy, learned) if is_on(ema_decay) else None,
    optimizer=tx.init(variables['params']),
    objective=objective.init(num_losses or len(label_stats), split(variables['params'])[0]),
    label_stats=dict(label_stats),
  )
