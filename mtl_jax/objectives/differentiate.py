"""The gradient of K losses in the way of an objective: one call for any loop, and the training step's own."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import passes
from mtl_jax.objectives.objective import Objective
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import weighted_sum

HEADS = ('plain', 'weighted')


class Found(NamedTuple):
  """The parts of a step's answer.

  Attributes:
    value: the loss to report: the objective's total, or the sum of the losses where it has none.
    gradients: with respect to the shared parameters, and to the heads'.
    state: the objective's next one, for `ValueAndGrad.after` once the optimizer has moved the parameters.
    losses: of the whole batch, as `losses_of` gave them: by name, or `[K]`.
    aux: the rest of what `losses_of` gave.
    moved: the rest of what `represent` gave.
    points: the K gradients that the objective combined; None in class L.
  """

  value: Float[Array, '']
  gradients: tuple[Any, Any]
  state: Any
  losses: Any
  aux: Any
  moved: Any
  points: Any


def value_and_grad(
  losses_of: Callable[..., Any],
  objective: Objective,
  *,
  represent: Callable[..., Any] | None = None,
  has_aux: bool = False,
  heads: str = 'plain',
  chunk: int | Callable[[Any, int], int] = 1,
  groups: Sequence[Hashable] | None = None,
  extra: Callable[[Any], Array] | None = None,
  weigh: Callable[..., Any] | None = None,
) -> 'ValueAndGrad':
  """`step(shared, heads, state, *args, present=None, key=None) -> Found`, for an objective of any cost class.

  `args` are passed on: the batch. In a loop, with an Optax optimizer `tx` over `params = (shared, heads)`:

      step = value_and_grad(losses_of, objectives.cagrad())
      state = step.init(shared, K)
      found = step(*params, state, batch, key=key)
      updates, optimizer = tx.update(found.gradients, optimizer, params)
      params = optax.apply_updates(params, updates)
      state = step.after(*params, found.state, batch)

  Args:
    losses_of: `(shared, heads, *args)` to the losses, by name or as an array [K]. Each is a scalar; for an objective
      with `parts`, `[parts]`: its means over disjoint parts of the batch. It must be pure: an NNX module is merged with
      `nnx.merge(..., copy=True)` inside it.
    represent: `(shared, *args)` to the representation, which `losses_of` then takes in the place of `shared`. K
      gradients then take K passes through the heads, and through `represent` K (class P) or one (class R, which needs
      it).
    has_aux: both functions return a pair, whose second part is handed back.
    heads: 'plain' gives each head the gradient of its own losses; 'weighted' times the method's weights, as the code of
      Nash-MTL, FairGrad and ExcessMTL has it. Of no concern to class L.
    chunk: backward passes through `represent` (or all, without it) side by side: more are faster on an accelerator and
      take more memory. A function of the pullback and the number of passes decides late.
    groups: of each loss, for losses with heads of their own: `losses_of` is then given `{group: representation}`, and
      one pass through the heads serves a loss of each group. `represent` may return such a mapping itself.
    extra: `aux` to a scalar that is added to the losses and not balanced, such as a penalty.
    weigh: `(pull, points, state, arguments) -> next state` for methods on the Gram matrix: has the weights without the
      K gradients, which are then never kept.

  Raises:
    ValueError: for settings that the objective cannot serve, and losses that do not have its parts.
  """
  if heads not in HEADS:
    raise ValueError(f'heads={heads!r}; choose from {", ".join(HEADS)}')
  if objective.needs == 'representation' and represent is None:
    raise ValueError("this objective works at the representation: give represent=..., or its option at='parameters'")

  def forward(copies: Any, heads: Any, *args: Any) -> Any:
    given = losses_of(copies if groups else copies[None], heads, *args)
    losses, aux = given if has_aux else (given, None)
    named = OrderedDict(losses) if isinstance(losses, Mapping) else None  # Whose order jax.tree keeps.
    each = jnp.asarray(losses) if named is None else jnp.stack([jnp.asarray(one) for one in named.values()], axis=-1)
    each = each[None] if each.ndim == 1 and objective.parts == 1 else each
    if each.ndim != 2 or len(each) != objective.parts:
      raise ValueError(
        f'this objective takes the losses of {objective.parts} part(s) of the batch: each must be a '
        f'{"scalar" if objective.parts == 1 else f"[{objective.parts}]"}, but together they are {list(each.shape)}'
      )
    return (each, None if extra is None else extra(aux)), (named, aux)

  def representation(shared: Any, *args: Any) -> tuple[Any, Any]:
    if represent is None:
      return shared, None
    return represent(shared, *args) if has_aux else (represent(shared, *args), None)

  return ValueAndGrad(forward, representation, objective, represent is not None, heads, chunk, groups, weigh)


@dataclasses.dataclass(frozen=True)
class ValueAndGrad:
  """A function of parameters, state and batch; `value_and_grad` makes it."""

  forward: Callable[..., Any]
  represent: Callable[..., tuple[Any, Any]]
  objective: Objective
  apart: bool
  heads: str
  chunk: int | Callable[[Any, int], int]
  groups: Sequence[Hashable] | None
  weigh: Callable[..., Any] | None

  def init(self, shared: Any, num_losses: int) -> Any:
    """The objective's state before the first step."""
    return self.objective.init(num_losses, shared)

  def __call__(self, shared: Any, heads: Any, state: Any, *args: Any, present: Any = None, key: Any = None) -> Found:
    objective = self.objective
    if objective.needs == 'losses':
      return self._of_total(shared, heads, state, args, present=present, key=key)
    z, pull, moved = jax.vjp(lambda shared: self.represent(shared, *args), shared, has_aux=True)
    at_once = 0 if self.apart or callable(self.chunk) else self.chunk
    losses_of = lambda copies, heads: self.forward(copies, heads, *args)  # noqa: E731
    found = passes.through_heads(losses_of, z, heads, groups=self.groups, chunk=at_once)
    (each, extra, (named, aux)), points = found[:3], found.points
    there = presence(present, named, each)
    whole = over_parts(each, there)
    known: dict[str, Any] = {'losses': whole, 'present': there.all(0), 'key': key}
    if self.weigh is not None:
      next_state = self.weigh(pull, points, state, known)
      (ours,) = pull(weighted_sum(jnp.where(known['present'], next_state.weights, 0), points))
    elif objective.needs == 'representation':
      combined, next_state = objective.update(points, state, at=z, **known)
      (ours,) = pull(combined)
    else:
      if self.apart:
        chunk = self.chunk(pull, each.size) if callable(self.chunk) else self.chunk or each.size
        points = passes.at_parameters(pull, points, chunk=chunk)
      if objective.parts > 1:
        points = jax.tree.map(lambda leaf: leaf.reshape(*each.shape, *leaf.shape[1:]), points)
      ours, next_state = objective.update(points, state, **known)
    factors = jnp.ones(len(whole)) if objective.head_scale is None else objective.head_scale(whole, state)
    factors = weights_of(next_state) if self.heads == 'weighted' else factors
    shares = factors * there / jnp.maximum(there.sum(0), 1)
    (_, theirs) = found.pull((shares, None if extra is None else jnp.ones_like(extra)))
    value = whole.sum()
    if extra is not None:
      value, ours = value + extra, jax.tree.map(jnp.add, ours, pull(found.extra_point())[0])
    return Found(value, (ours, theirs), next_state, _as_given(whole, named), aux, moved, points)

  def after(self, shared: Any, heads: Any, state: Any, *args: Any, present: Any = None) -> Any:
    """The objective's state after its second look at the batch; unchanged for objectives that take none."""
    if self.objective.after is None:
      return state
    (each, _), (named, _) = self._forward(shared, heads, args)[0]
    return self.objective.after(each[0], state, present=presence(present, named, each)[0])

  def _of_total(self, shared: Any, heads: Any, state: Any, args: Any, *, present: Any, key: Any) -> Found:
    def total(shared: Any, heads: Any) -> Any:
      ((each, extra), (named, aux)), moved = self._forward(shared, heads, args)
      there = presence(present, named, each)[0]
      value, next_state = self.objective.update(each[0], state, present=there, key=key)
      return value if extra is None else value + extra, (next_state, _as_given(each[0], named), aux, moved)

    (value, rest), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(shared, heads)
    return Found(value, gradients, *rest, points=None)

  def _forward(self, shared: Any, heads: Any, args: Any) -> tuple[Any, Any]:
    z, moved = self.represent(shared, *args)
    return self.forward(passes.copies(z, self.groups), heads, *args), moved


def presence(present: Any, named: Mapping[str, Array] | None, each: Float[Array, 'p k']) -> Bool[Array, 'p k']:
  """The losses that are there in each part of the batch, given by name or as an array, or all."""
  if present is None:
    return jnp.ones(each.shape, bool)
  if isinstance(present, Mapping):
    if named is None or set(present) != set(named):
      raise ValueError(f'present names {sorted(present)}, but the losses are {sorted(named or ())}')
    present = jnp.stack([jnp.asarray(present[name], bool) for name in named], axis=-1)
  if jnp.shape(present) not in (each.shape, each.shape[1:]):
    raise ValueError(f'present has shape {list(jnp.shape(present))} for losses {list(each.shape)}')
  return jnp.broadcast_to(present, each.shape)


def over_parts(values: Float[Array, 'p k'], present: Bool[Array, 'p k']) -> Float[Array, ' k']:
  """The mean over the parts of a batch that have a label; 0 where none has."""
  return jnp.where(present, values, 0).sum(0) / jnp.maximum(present.sum(0), 1)


def weights_of(state: Any) -> Float[Array, ' k']:
  """The weights of the last update. Raises ValueError for a method that has none."""
  if not hasattr(state, 'weights'):
    raise ValueError("heads='weighted' is for methods with a weight for each loss; this one has none")
  return state.weights


def _as_given(losses: Float[Array, ' k'], named: Mapping[str, Array] | None) -> Any:
  return losses if named is None else OrderedDict(zip(named, losses, strict=True))
