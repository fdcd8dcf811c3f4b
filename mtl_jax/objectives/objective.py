"""What every objective is: a pair of pure functions, like an optax transformation."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float, Key


class Objective(NamedTuple):
  """How the losses of K tasks become one.

  Attributes:
    init: gives the objective's state, a pytree.
    update: `(losses [K], present [K], state, key) -> (total, next state)`; a task without a single label in the
      batch is not present and its loss is 0.
  """

  init: Callable[[], Any]
  update: Callable[[Float[Array, ' k'], Bool[Array, ' k'], Any, Key[Array, '']], tuple[Float[Array, ''], Any]]
