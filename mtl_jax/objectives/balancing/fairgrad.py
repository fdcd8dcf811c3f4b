"""FairGrad: the update that is alpha-fair in the tasks' gains. Class P."""

from typing import Annotated

from mtl_jax.objectives.balancing.fairness import fair_weights
from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, stateless
from mtl_jax.objectives.declared import number
from mtl_jax.objectives.task_gradients import on_gram


@on_gram
def fairgrad(alpha: Annotated[float, number(0.5, 10)] = 2.0) -> GramWeighting:
  """`G w = w^(-1/alpha)`, w > 0: the direction of the largest sum of gains to the power 1 - alpha.

  Ban, Ji (2024), Fair Resource Allocation in Multi-Task Learning; alpha = 2 on CelebA (LibMTL's default is 1). The
  weights are neither a mean's nor a sum's: gradients times s give weights times `s^(-2 alpha / (1 + alpha))`, an update
  times `s^((1 - alpha) / (1 + alpha))`, and one task alone gets `|g|^(-2 alpha / (1 + alpha))`. (The authors' code then
  multiplies by K.) alpha = 1 is Nash-MTL. A task whose gradient is 0 gets 0; where the equation has no solution see
  `fair_weights`. In LibMTL heads get the gradients times w: `heads='weighted'`. Class P.

  With alpha above 1 the update *grows* as the gradients shrink, without bound near a stationary point, and it does not
  vanish on the Pareto front: there the solution drifts along the front towards the task with the smaller gradient. So
  clip the update (`optimizer.clip_norm`, 1 as in the authors' code) and let the learning rate fall. The published
  behaviour is that of a least-squares solver which stops short of the solution, whose steps are smaller there.

  Args:
    alpha: the larger, the more the worst-off task counts.
  """
  return stateless(lambda gram, task: fair_weights(cosines(gram, task), alpha))
