"""Computes the value and the gradient of K losses under an objective, in any training loop."""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.objectives import passes
from mtl_jax.objectives.objective import Objective, typed
from mtl_jax.objectives.shapes import Array, Bool, Float
from mtl_jax.objectives.task_gradients import weighted_sum

HEADS = ('plain', 'weighted')


class ValueAndGrad(NamedTuple):
  """Results of a call of `value_and_grad`.

  Attributes:
    value: the loss to report: the objective's total, or the sum of the losses where it has none.
    gradients: with respect to the shared parameters, and to the heads'.
    state: the objective's next one, for `value_and_grad.after` once the optimizer has moved the parameters.
    losses: of the whole batch, as `losses_of` gave them: by name, or `[K]`; 0 for one that is not present.
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


@dataclasses.dataclass(frozen=True, eq=False)  # Hashed by identity, for jax.jit.
class value_and_grad:  # Called like a function, as functools.partial is.
  """`step(shared, heads, state, *args, present=None, key=None) -> ValueAndGrad`, for an objective of any cost class.

  `args` are passed on: the batch. `present` says which losses have a label in it: bool by name, `[K]` or `[parts, K]`;
  None: all. An absent loss takes no part but is differentiated, so a mean over no labels must not divide by 0. `key` is
  for methods that draw at random. In a loop, with an Optax optimizer `tx` over `params = (shared, heads)`:

      step = value_and_grad(losses_of, objectives.cagrad())
      state = step.init(shared, K)
      found = step(*params, state, batch, key=key)
      updates, optimizer = tx.update(found.gradients, optimizer, params)
      params = optax.apply_updates(params, updates)
      state = step.after(*params, found.state, batch)

  Attributes:
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
      take more memory; 0 for all. A function of the pullback and the number of passes decides late.
    groups: of each loss, for losses with heads of their own: `losses_of` is then given `{group: representation}`, and
      one pass through the heads serves a loss of each group. `represent` may return such a mapping itself.
    extra: `aux` to a scalar that is added to the losses and not balanced, such as a penalty.
    weigh: `(pull, points, state, arguments) -> next state` for methods on the Gram matrix: has the weights without the
      K gradients, which are then never kept.

  Raises:
    TypeError: the objective is none.
    ValueError: for settings that the objective cannot serve, and losses that do not have its parts.
  """

  losses_of: Callable[..., Any]
  objective: Objective
  _: dataclasses.KW_ONLY
  represent: Callable[..., Any] | None = None
  has_aux: bool = False
  heads: str = 'plain'
  chunk: int | Callable[[Any, int], int] = 1
  groups: Sequence[Hashable] | None = None
  extra: Callable[[Any], Array] | None = None
  weigh: Callable[..., Any] | None = None

  def __post_init__(self) -> None:
    if not isinstance(self.objective, Objective):
      raise TypeError(f'objective must be one, such as objectives.cagrad(), not {self.objective!r}')
    if self.heads not in HEADS:
      raise ValueError(f'heads={self.heads!r}; choose from {", ".join(HEADS)}')
    if self.objective.needs == 'representation' and self.represent is None:
      raise ValueError("this objective works at the representation: give represent=..., or its option at='parameters'")

    if self.groups is not None and len(list(itertools.groupby(self.groups))) > len(set(self.groups)):
      raise ValueError(f'groups={list(self.groups)}: losses of one group must lie side by side')

  def init(self, shared: Any, num_losses: int) -> Any:
    """The objective's state before the first step."""
    return self.objective.init(num_losses, shared)

  def after(self, shared: Any, heads: Any, state: Any, *args: Any, present: Any = None) -> Any:
    """The objective's state after its second forward pass over the batch; unchanged for objectives that take none."""
    if self.objective.after is None:
      return state
    z = passes.copies(represented(self, shared, args)[0], self.groups)
    (each, _), (named, _) = losses_in_parts(self, z, heads, args)
    return typed(self.objective.after(each[0], state, present=presence(present, named, each)[0]), state)

  def __call__(
    self, shared: Any, heads: Any, state: Any, *args: Any, present: Any = None, key: Any = None
  ) -> ValueAndGrad:
    z, pull, moved = jax.vjp(lambda shared: represented(self, shared, args), shared, has_aux=True)
    losses_of = lambda z, heads: losses_in_parts(self, z, heads, args)  # noqa: E731
    by_head = passes.through_heads(losses_of, z, heads, groups=self.groups)
    each, extra, (named, aux) = by_head.losses, by_head.extra, by_head.aux
    there = presence(present, named, each)
    counts = jnp.maximum(there.sum(0), 1)  # A loss is the mean over the parts of the batch that have a label.
    whole, shares = jnp.where(there, each, 0).sum(0) / counts, (there / counts).astype(each.dtype)
    known, one, points = {'present': there.all(0), 'key': key}, jax.tree.map(jnp.ones_like, extra), None
    if self.objective.needs == 'losses':
      total = jax.value_and_grad(self.objective.update, has_aux=True)
      (value, next_state), slopes = total(whole, state, **known)
      at_z, theirs = by_head.pull((slopes * shares, one))
      (ours,) = pull(at_z)
    else:
      value = whole.sum()
      ours, next_state, points = self._combined(pull, by_head, z, state, {'losses': whole, **known})
      factors = head_factors(self, whole, state, next_state).astype(each.dtype)
      _, theirs = by_head.pull((factors * shares, one))
      if extra is not None:
        (more,) = pull(by_head.pull((jnp.zeros_like(each), one))[0])
        ours = jax.tree.map(jnp.add, ours, more)
    value = value if extra is None else value + extra
    losses = whole if named is None else OrderedDict(zip(named, whole, strict=True))
    return ValueAndGrad(value, (ours, theirs), next_state, losses, aux, moved, points)

  def _combined(self, pull: Any, by_head: passes.HeadPass, z: Any, state: Any, known: dict[str, Any]) -> Any:
    """The shared parameters' gradient, the objective's next state, and the K gradients it has combined."""
    apart, parts, num = self.represent is not None, self.objective.parts, by_head.losses.size
    points = by_head.points(0 if apart or callable(self.chunk) else self.chunk)
    if self.weigh is not None:
      next_state = self.weigh(pull, points, state, known)
      combined = weighted_sum(jnp.where(known['present'], next_state.weights, 0), points)
    elif self.objective.needs == 'representation':
      combined, next_state = self.objective.update(points, state, at=z, **known)
    else:
      chunk = self.chunk(pull, num) if callable(self.chunk) else self.chunk or num
      points = passes.at_parameters(pull, points, chunk=chunk) if apart else points
      if parts > 1:
        points = jax.tree.map(lambda leaf: leaf.reshape(parts, -1, *leaf.shape[1:]), points)
      return *self.objective.update(points, state, **known), points
    return pull(combined)[0], next_state, points


def represented(call: value_and_grad, shared: Any, args: Any) -> tuple[Any, Any]:
  """The representation, or without one the shared parameters themselves; and the auxiliary output."""
  if call.represent is None:
    return shared, None
  return call.represent(shared, *args) if call.has_aux else (call.represent(shared, *args), None)


def losses_in_parts(call: value_and_grad, copies: Any, heads: Any, args: Any) -> Any:
  """The losses `[parts, K]` and the extra loss; and the losses' names and the auxiliary output."""
  given, parts = call.losses_of(copies if call.groups else copies[None], heads, *args), call.objective.parts
  losses, aux = given if call.has_aux else (given, None)
  named = OrderedDict(losses) if isinstance(losses, Mapping) else None  # Whose order jax.tree keeps.
  shapes = {} if named is None else {name: list(jnp.shape(one)) for name, one in named.items()}
  if len(set(map(str, shapes.values()))) > 1:
    raise ValueError(f'losses must be of one shape, not {shapes}')
  if losses is None or getattr(losses, 'shape', None) == ():
    told = 'None' if losses is None else 'one number'
    raise ValueError(f'losses_of must return each loss, by name or as an array [K], not {told}')
  each = jnp.asarray(losses) if named is None else jnp.stack([jnp.asarray(one) for one in named.values()], axis=-1)
  each = each[None] if each.ndim == 1 and parts == 1 else each
  if each.ndim != 2 or len(each) != parts:
    raise ValueError(
      f'this objective takes the losses of {parts} part(s) of the batch: each must be a '
      f'{"scalar" if parts == 1 else f"[{parts}]"}, but together they are {list(each.shape)}'
    )
  if call.groups is not None and len(call.groups) != each.shape[1]:
    raise ValueError(f'groups has {len(call.groups)} names for {each.shape[1]} losses')
  return (each, None if call.extra is None else call.extra(aux)), (named, aux)


def head_factors(call: value_and_grad, losses: Float[Array, ' k'], state: Any, next_state: Any) -> Array:
  """Factors of the heads' own gradients."""
  if call.heads == 'weighted':
    if not hasattr(next_state, 'weights'):
      raise ValueError("heads='weighted' is for methods with a weight for each loss; this one has none")
    return next_state.weights
  return jnp.ones(len(losses)) if call.objective.head_scale is None else call.objective.head_scale(losses, state)


def presence(present: Any, named: Mapping[str, Array] | None, each: Float[Array, 'p k']) -> Bool[Array, 'p k']:
  """The losses present in each part of the batch, given by name or as an array; by default all."""
  if present is None:
    return jnp.ones(each.shape, bool)
  if isinstance(present, Mapping):
    if named is None or set(present) != set(named):
      raise ValueError(f'present names {sorted(present)}, but the losses are {sorted(named or ())}')
    present = jnp.stack([jnp.asarray(present[name], bool) for name in named], axis=-1)
  present = jnp.asarray(present, bool)
  if present.shape not in (each.shape, each.shape[1:]):
    raise ValueError(f'present has shape {list(present.shape)} for losses {list(each.shape)}')
  return jnp.broadcast_to(present, each.shape)
