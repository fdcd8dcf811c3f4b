"""ConFIG: the direction with equal cosines to all task gradients, as long as their projections together. Class P."""

import jax.numpy as jnp

from mtl_jax.objectives.balancing.gram import GramWeighting, cosines, least_squares, stateless
from mtl_jax.objectives.declared import Direction
from mtl_jax.objectives.task_gradients import on_gram
from mtl_jax.objectives.weighting import guard


@on_gram
def conflict_free(preference: Direction = None) -> GramWeighting:
  """`d = (sum_k g_k . u) u`, u the direction of `U+ p`, U the unit gradients.

  Liu, Chu, Thuerey (2024), ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks
  (arXiv:2408.11104, equation 2). With p all 1 every cosine is the same: no task is worked against where the gradients
  are independent. Otherwise it is the nearest in least squares, and opposing gradients give 0. Orthogonal gradients of
  one length give their *sum*, as does one task alone. Class P.

  Args:
    preference: the cosines' ratios p; None: all alike.
  """
  preferred = guard.preference(preference)

  def rule(gram, task):
    matrix, norms, live = cosines(gram, task)
    toward = jnp.where(live, preferred(task.present), 0)
    coefficients = jnp.where(live, least_squares(matrix, toward)[0], 0)
    along = matrix @ coefficients
    square = coefficients @ along
    length = jnp.where(live, norms * along, 0).sum()  # Times the direction's own.
    return jnp.where(square > 0, coefficients * (length / jnp.where(square > 0, square, 1)) / norms, 0)

  return stateless(rule)
