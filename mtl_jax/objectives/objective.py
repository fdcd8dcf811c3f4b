"""What every objective is: a pair of pure functions, like an optax transformation, in one of three cost classes."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Float

from mtl_jax.objectives.balancing.gram import GramWeighting

Point = Literal['losses', 'representation', 'parameters']


class Objective(NamedTuple):
  """How K losses, or their K gradients, become one.

  `needs` is the cost class, and says what `update` takes first:

  - `losses` (class L: one backward pass): `update(losses [K], state, *, present, key) -> (total, next state)`. The
    gradient of `total` is the update; the losses may be traced, nothing is differentiated through the state.
  - `representation` (class R: K backward passes through the heads, one through the shared part) and
  - `parameters` (class P: K backward passes through everything):
    `update(gradients, state, *, losses, present, key, at=None) -> (combined, next state)`. `gradients` is a pytree
    whose leaves have a first axis K: the gradients with respect to the representation `[K, batch, ...]`, or to the
    shared parameters `[K, ...]`; `combined` has no such axis. `at` is the representation itself, for methods that
    look at it.

  The losses are `[K]`, `present` is bool `[K]`, and `key` is used by random methods alone. A task without a single
  label in the batch is not present: its loss and gradient are not read, it takes no part in the update, and the
  others get what they would get without it.

  Parameters of one head alone are no part of the K gradients. They get the plain gradient of the sum of the losses,
  each head that of its own, as in torchjd and LibMTL (times `head_scale` where a method has one); in class L they get
  the gradient of `total` like all others.

  In a training loop of one's own, with an Optax optimizer `tx`:

      objective = mtl_jax.objectives.cagrad(c=0.4)
      state = objective.init(K, params)
      losses, pullback = jax.vjp(losses_of, params)
      (gradients,) = jax.vmap(pullback)(jnp.eye(K))
      gradient, state = objective.update(gradients, state, losses=losses, present=jnp.ones(K, bool), key=key)
      updates, optimizer = tx.update(gradient, optimizer, params)

  Attributes:
    init: `(K, like) -> state`, a pytree; `like` has the structure and shapes of one task's gradient, and only methods
      that remember gradients look at it. A state with a field `weights [K]` shows there the last update's weights.
    update: as above.
    needs: the cost class.
    weighting: of methods whose update is the sum of the gradients times weights that follow from their Gram matrix:
      the weights can then be had without keeping the gradients.
    after: `(losses [K], state, *, present) -> next state` for methods that look at the same batch's losses again
      after the step; None for all others.
    parts: into how many disjoint parts of the batch the losses are split. Where it is more than 1, the gradients'
      leaves have first axes `[parts, K]`; `losses` and `present` are of the whole batch.
    head_scale: `losses [K] -> factors [K]` of the heads' own gradients; None leaves them plain.
  """

  init: Callable[..., Any]
  update: Callable[..., tuple[Any, Any]]
  needs: Point = 'losses'
  weighting: GramWeighting | None = None
  after: Callable[..., Any] | None = None
  parts: int = 1
  head_scale: Callable[[Float[Array, ' k']], Float[Array, ' k']] | None = None


def no_state(num_tasks: int, like: Any = None) -> tuple[()]:
  """`init` of an objective that keeps nothing."""
  del num_tasks, like
  return ()
