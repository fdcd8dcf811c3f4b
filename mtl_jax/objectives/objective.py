"""The interface of objectives: a pair of pure functions, like an Optax transformation, in one of three cost classes."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mtl_jax.kinds import shown
from mtl_jax.objectives.balancing.gram import GramWeighting
from mtl_jax.objectives.shapes import Array, Float

Point = Literal['losses', 'representation', 'parameters']


@dataclasses.dataclass(frozen=True)
class Objective:
  """A method that combines K losses, or their K gradients, into one update.

  `needs` is the cost class, and says what `update` takes first:

  - `losses` (class L: one backward pass): `update(losses [K], state, *, present, key) -> (total, next state)`. The
    gradient of `total` is the update; the losses may be traced, nothing is differentiated through the state.
  - `representation` (class R: K backward passes through the heads, one through the shared part) and
  - `parameters` (class P: K backward passes through everything):
    `update(gradients, state, *, losses, present, key, at=None) -> (combined, next state)`. `gradients` is a pytree
    whose leaves have a first axis K: the gradients with respect to the representation `[K, batch, ...]`, or to the
    shared parameters `[K, ...]`; `combined` has no such axis. `at` is the representation itself, for methods that
    look at it.

  The losses are `[K]`, `present` is bool `[K]` (None: all are), and `key` is used by random methods alone. A task
  without a single label in the batch is not present: its loss and gradient are not read, it takes no part in the
  update, and the others get what they would get without it.

  Parameters of one head alone are no part of the K gradients: `value_and_grad` gives them the plain gradient of the sum
  of the losses (times `head_scale` where a method has one), or, asked for `heads='weighted'`, that of the losses times
  the method's weights. In class L they get the gradient of `total` like all others.

  In a training loop of one's own all this is one call: see `mtl_jax.objectives.value_and_grad`.

  Attributes:
    start: the state before the first step, `(K, like) -> state`, a pytree; `like` has the structure and shapes of one
      task's gradient, and only methods that remember gradients look at it. Without it their state begins empty and
      takes its shape at the first update, which compiles a step twice. A state with a field `weights [K]` shows there
      the last update's weights.
    rule: what `update` does once its arguments are known to fit.
    needs: the cost class.
    weighting: of methods whose update is the sum of the gradients times weights that follow from their Gram matrix:
      the weights are then computed without keeping the gradients.
    after: `(losses [K], state, *, present) -> next state` for methods that look at the same batch's losses again
      after the step; None for all others.
    parts: into how many disjoint parts of the batch the losses are split. Where it is more than 1, the gradients'
      leaves have first axes `[parts, K]`; `losses` and `present` are of the whole batch.
    head_scale: `(losses [K], state) -> factors [K]` of the heads' own gradients; None leaves them plain.
  """

  start: Callable[..., Any]
  rule: Callable[..., tuple[Any, Any]]
  needs: Point = 'losses'
  weighting: GramWeighting | None = None
  after: Callable[..., Any] | None = None
  parts: int = 1
  head_scale: Callable[[Float[Array, ' k'], Any], Float[Array, ' k']] | None = None

  def init(self, num_losses: int, like: Any = None) -> Any:
    """The state before the first step.

    Raises:
      TypeError: the number is none.
      ValueError: there is no loss.
    """
    if not hasattr(num_losses, '__index__'):
      raise TypeError(f'init takes the number of losses, not {shown(num_losses)}')
    if num_losses < 1:
      raise ValueError(f'an objective is of 1 loss or more, not of {num_losses}')
    return self.start(num_losses, like)

  def update(
    self,
    first: Any,
    state: Any,
    *misplaced: Any,
    losses: Float[Array, ' k'] | None = None,
    present: ArrayLike | Sequence[bool] | None = None,
    key: Any = None,
    at: Any = None,
  ) -> tuple[Any, Any]:
    """The combined gradient, or class L's total, and the next state.

    Raises:
      TypeError: an argument is missing, among them the key of a random method, or is given by position.
      ValueError: losses, gradients, `present` or the state are not of one number of losses.
    """
    if misplaced:
      raise TypeError('losses, present, key and at are given by name: update(gradients, state, losses=..., key=...)')
    if self.needs != 'losses' and losses is None:
      raise TypeError(f'a method at the {self.needs} needs the losses [K] too: update(gradients, state, losses=...)')
    num = self._count(first if losses is None else losses)
    if self.needs != 'losses':
      self._check_gradients(first, num)
    present = jnp.ones(num, bool) if present is None else jnp.asarray(present, bool)
    if present.shape != (num,):
      raise ValueError(f'present has shape {list(present.shape)} for {num} losses; give [{num}]')
    of_k = f'one of {num} losses with these gradients; make it by init({num}, parameters)'
    self._check_state(state, num, first, wrong=f'the state is not {of_k}')
    known = {} if self.needs == 'losses' else {'losses': losses, 'at': at}
    found = self.rule(first, state, present=present, key=key, **known)
    if not isinstance(found, tuple) or len(found) != 2:
      raise TypeError(f"the objective's rule must return a pair, (update, next state), not {type(found).__name__}")
    self._check_combined(found[0], first)
    self._check_state(found[1], num, first, wrong=f"the objective's rule returned a next state that is not {of_k}")
    return found[0] if self.needs == 'losses' else typed(found[0], first), typed(found[1], state)

  def _count(self, losses: Any) -> int:
    shape = getattr(losses, 'shape', None)
    if shape is None or len(shape) != 1:
      raise ValueError(f'losses must be one array [K], not {type(losses).__name__ if shape is None else list(shape)}')
    return shape[0]

  def _check_gradients(self, gradients: Any, num: int) -> None:
    axes = (num,) if self.parts == 1 else (self.parts, num)
    leaves = jax.tree.leaves(gradients)
    if self.parts > 1 and all(jnp.ndim(leaf) == 2 for leaf in leaves):
      raise ValueError(
        f'gradients {[list(jnp.shape(leaf)) for leaf in leaves]} may be K gradients of the whole batch; this method '
        f'takes those of {self.parts} parts, {[*axes, "..."]}: give single parameters an axis of 1'
      )
    for leaf in leaves:
      if jnp.shape(leaf)[: len(axes)] != axes:
        parts = f' in {self.parts} parts of the batch' if self.parts > 1 else ''
        raise ValueError(
          f'gradients of {num} losses{parts} must have first axes {list(axes)}, not shape {list(jnp.shape(leaf))}'
        )

  def _check_combined(self, combined: Any, first: Any) -> None:
    """The rule is perhaps the user's own; what it returns is else found wrong far from here, if at all."""
    wanted, words = self._one(first), 'one gradient without the first axis K, for each leaf'
    if self.needs == 'losses':
      wanted, words = jnp.zeros(()), 'a scalar, the total'
    alike = jax.tree.structure(combined) == jax.tree.structure(wanted)
    shapes, right = (jax.tree.map(lambda leaf: list(jnp.shape(leaf)), tree) for tree in (combined, wanted))
    if not alike or shapes != right:
      raise ValueError(f"the objective's rule must return {words}: shape {shown(right)}, not {shown(shapes)}")

  def _check_state(self, state: Any, num: int, first: Any, *, wrong: str) -> None:
    """A method whose state has K in it finds a state of another K here; without `like` some states begin empty."""
    like = None if self.needs == 'losses' else self._one(first)
    found = jax.tree.map(jnp.shape, state)
    if found not in [jax.tree.map(jnp.shape, jax.eval_shape(lambda x=x: self.init(num, x))) for x in (like, None)]:
      raise ValueError(wrong)

  def _one(self, gradients: Any) -> Any:
    """The shapes of one task's gradient, given those of all."""
    axes = 1 if self.parts == 1 else 2
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf)[axes:], leaf.dtype), gradients)


def typed(tree: Any, like: Any) -> Any:
  """A tree with the types of another, whatever was computed in float32 or wider; as it is if that has other leaves."""
  if jax.tree.structure(tree) != jax.tree.structure(like):
    return tree
  return jax.tree.map(lambda leaf, other: leaf.astype(jnp.result_type(other)), tree, like)


def of_losses(rule: Callable[..., Float[Array, '']]) -> Objective:
  """Class L without memory or chance.

  Args:
    rule: `(losses [K], present [K]) -> total`, a scalar. A loss that is not present is to take no part.

  Raises:
    TypeError: the rule does not take these two.
  """
  try:
    inspect.signature(rule).bind('losses', 'present')
  except TypeError as error:
    raise TypeError(f'of_losses takes a rule(losses, present) -> total; this one is not called so: {error}') from None
  return Objective(no_state, lambda losses, state, *, present, key: (rule(losses, present), state))


def no_state(num_tasks: int, like: Any = None) -> tuple[()]:
  """`start` of an objective that keeps nothing."""
  return ()
