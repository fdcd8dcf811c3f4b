"""Heads of all tasks, learned side by side on features that do not move, and their losses on other examples."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import with_fields
from mtl_jax.data.input.pipeline import Split
from mtl_jax.data.input.sampler import Sampler
from mtl_jax.errors import DivergedError
from mtl_jax.evaluation.step import label_losses
from mtl_jax.models.backbone import Representation
from mtl_jax.models.network import Network
from mtl_jax.run import optimizer
from mtl_jax.tasks import LabelStats, Task, losses

STEPS_A_CALL = 50


class HeadTrainer:
  """The compiled functions, for features of one width."""

  def __init__(self, config: ConfigDict, model: Network, tasks: Sequence[Task], label_stats: Mapping[str, LabelStats]):
    self.config, self.model, self.tasks, self.label_stats = config, model, tasks, label_stats
    # A norm clipped over all heads would let them meet.
    self.tx = optimizer.from_config(with_fields(config, optimizer__clip_norm=0.0))
    self._steps = jax.jit(self._several_steps, donate_argnums=(0, 1))
    self._losses = jax.jit(self._label_losses)

  def train(
    self, features: Float[np.ndarray, 'n f'], train: Split, sampler: Sampler, *, stop: Callable[[], None]
  ) -> Any:
    """The heads' parameters after `train.steps` steps, on the batches that the sampler gives.

    Raises:
      DivergedError: where a loss is not finite.
    """
    key, kept = jax.random.key(self.config.train.seed), jnp.asarray(features)
    params = jax.jit(self.model.init_heads)(key, Representation(kept[:1]))['params']
    state, labels, mask = self.tx.init(params), jax.device_put(train.labels), jax.device_put(train.mask)
    for first in range(0, self.config.train.steps, STEPS_A_CALL):
      stop()
      steps = range(first, min(first + STEPS_A_CALL, self.config.train.steps))
      positions = np.stack([sampler.indices(step) for step in steps]).astype(np.int32)
      params, state, totals = self._steps(params, state, kept, labels, mask, positions)
      if not np.isfinite(totals).all():
        raise DivergedError(
          f'a head on frozen features diverged by step {steps[-1] + 1}; lower config.optimizer.learning_rate'
        )
    return params

  def losses(self, params: Any, features: Float[np.ndarray, 'n f'], split: Split) -> Float[np.ndarray, 'k n']:
    """Each task's sum of losses over the labels of each example."""
    per_label = self._losses(params, jnp.asarray(features), split.labels, split.mask)
    return np.stack([np.asarray(jnp.where(split.mask[t.name], per_label[t.name], 0).sum(1)) for t in self.tasks])

  def _label_losses(self, params: Any, features: Array, labels: Any, mask: Any) -> dict[str, Array]:
    outputs, _ = self.model.decode({'params': params}, Representation(features), train=True)
    return label_losses(outputs, labels, mask, tasks=self.tasks, label_stats=self.label_stats)

  def _several_steps(self, params: Any, state: Any, features: Array, labels: Any, mask: Any, positions: Array) -> Any:
    def total(params: Any, features: Array, labels: Any, mask: Any) -> Array:
      per_label = self._label_losses(params, features, labels, mask)
      return sum((losses.masked_mean(per_label[t.name], mask[t.name]) for t in self.tasks), jnp.zeros(()))

    def step(carry: Any, rows: Array) -> Any:
      params, state = carry
      batch = jax.tree.map(lambda leaf: leaf[rows], (features, labels, mask))
      value, gradients = jax.value_and_grad(total)(params, *batch)
      updates, state = self.tx.update(gradients, state, params)
      return (optax.apply_updates(params, updates), state), value

    (params, state), totals = jax.lax.scan(step, (params, state), positions)
    return params, state, totals
