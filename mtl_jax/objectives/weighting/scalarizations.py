"""Stateless loss weightings and scalarizations. Class L."""

import jax
import jax.numpy as jnp

from mtl_jax.objectives.declared import AtLeast0, Direction, Factors, NumberOrEach, Temperature, declared
from mtl_jax.objectives.objective import Objective, no_state, of_losses
from mtl_jax.objectives.weighting import guard

NEAREST = 1e-6  # Beneath this PBI's distance levels off: its slope at 0 would be infinite.


@declared
def fixed(weights: Factors = None) -> Objective:
  """`sum_k w_k L_k` over the tasks that have labels in the batch; without weights all are 1: the plain sum."""

  def total(losses, present):
    factors = guard.per_task(1.0 if weights is None else weights, len(losses), name='weights').astype(losses.dtype)
    return guard.total(factors * losses, present)

  return of_losses(total)


@declared
def scale_invariant() -> Objective:
  """`sum_k log L_k`: each loss times a constant leaves the gradient as it is (Navon et al. 2022, arXiv:2202.01017).

  A baseline of Nash-MTL's and FAMO's tables.
  """
  return of_losses(lambda losses, present: guard.total(jnp.log(guard.safe(losses, present)), present))


@declared
def gls() -> Objective:
  """Geometric loss strategy (Chennupati et al. 2019, "MultiNet++", arXiv:1904.08492): `(prod_k L_k)^(1/K)`.

  By way of logarithms, so that 40 losses do not underflow.
  """

  def total(losses, present):
    return jnp.where(present.any(), jnp.exp(guard.mean(jnp.log(guard.safe(losses, present)), present)), 0)

  return of_losses(total)


@declared
def rlw() -> Objective:
  """Random loss weighting (Lin et al. 2022, arXiv:2111.10603): `sum_k w_k L_k`, `w = softmax(N(0, I))` of each step."""

  def update(losses, state, *, present, key):
    weights = guard.softmax(jax.random.normal(guard.drawn_with(key), losses.shape), present)
    return guard.total(weights * losses, present), state

  return Objective(no_state, update)


@declared
def uw_so(temperature: Temperature = 20.0) -> Objective:
  """`sum_k w_k L_k`, `w = softmax(1 / (T sg(L)))`: the uncertainties that are best for these losses, softened.

  Soft optimal uncertainty weighting (Kirchdorfer et al. 2024, arXiv:2408.07985). The weights that minimise Kendall's
  uncertainty loss are `1 / L_k`; the softmax makes them sum to 1. Losses near 0 take all the weight where T is small.

  Args:
    temperature: T. The paper tunes it on every set and net, and names no default; 20 is in its range.
  """

  def total(losses, present):
    inverse = 1 / guard.safe(jax.lax.stop_gradient(losses), present)
    return guard.total(guard.softmax(inverse / temperature, present) * losses, present)

  return of_losses(total)


@declared
def cosmos(lam: AtLeast0 = 1.0, preference: Direction = None) -> Objective:
  """`sum_k r_k L_k - lam cos(r, L)`, r the preference, which here sums to 1.

  COSMOS, a linear scalarization bent towards a preference (Ruchte and Grabocka 2021, arXiv:2103.13392), whose network
  also reads r, drawn anew for every batch; here r is one for the whole run.

  Args:
    lam: how much the cosine counts; the paper takes 0.01 to 8 by the set and names no default.
    preference: a number of 0 or more for each loss; None: all alike.
  """
  preferred = guard.preference(preference)

  def total(losses, present):
    weights, values = preferred(present), jnp.where(present, losses, 0)
    along = weights @ values
    lengths = [jnp.maximum(guard.length(vector), guard.LEAST_LOSS) for vector in (weights, values)]
    return along - lam * along / (lengths[0] * lengths[1])

  return of_losses(total)


@declared
def pbi(theta: AtLeast0 = 5.0, preference: Direction = None, reference: NumberOrEach = 0.0) -> Objective:
  """`d_1 + theta d_2`: the losses' way along the preference, and their distance from it (Zhang and Li 2007, "MOEA/D").

  With `F = L - reference` and the unit vector u of the preference, `d_1 = F . u` and `d_2 = |F - d_1 u|`. A task that
  is further along than its share may get a negative weight.

  Args:
    theta: how much the distance counts; 5 is the paper's.
    preference: the direction, a number of 0 or more for each loss; None: all alike.
    reference: the losses' least values.
  """
  preferred = guard.preference(preference)

  def total(losses, present):
    weights = preferred(present)
    direction = weights / jnp.maximum(guard.length(weights), guard.LEAST_LOSS)
    values = jnp.where(present, losses - guard.per_task(reference, len(present), name='reference'), 0)
    along = values @ direction
    away = values - along * direction
    return along + theta * guard.length(away, least=NEAREST)

  return of_losses(total)
