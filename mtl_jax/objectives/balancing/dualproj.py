"""DualProj: the mean gradient projected onto the cone of directions that conflict with no task. Class P."""

from collections.abc import Sequence

from mtl_jax.objectives.balancing.gram import GramWeighting, stateless
from mtl_jax.objectives.balancing.upgrad import check_regularization, cone_projection
from mtl_jax.objectives.weighting import guard


def dualproj(regularization: float = 1e-4, preference: Sequence[float] | None = None) -> GramWeighting:
  """`argmin v' G v` over `v >= 1 / K`.

  Lopez-Paz, Ranzato (2017), Gradient Episodic Memory for Continual Learning, equation 11, of the mean gradient as in
  torchjd. One problem where UPGrad solves K: it helps the mean, and long gradients decide that. Tasks without conflict
  give the *mean* gradient; one task alone gets 1. Class P.

  Args:
    regularization: of G, as in UPGrad.
    preference: weights, brought to a sum of 1, in the place of 1 / K.

  Raises:
    ConfigError: the regularization is too small for float32, or the preference is no direction.
  """
  check_regularization(regularization, name='dualproj')
  guard.check_preference(preference, name='dualproj')

  def rule(gram, task):
    return cone_projection(gram, task.present, regularization)(guard.preferred(preference, task.present))

  return stateless(rule)
