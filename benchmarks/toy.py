"""The two losses in the plane that papers draw: where every method goes from five starts, all in one compiled scan.

    python benchmarks/toy.py [--methods upgrad cagrad] [--png docs/toy.png] [--json FILE]

The problem is CAGrad's (Liu et al. 2021, arXiv:2110.14048) with FAMO's settings (Liu et al. 2023, arXiv:2306.03792):
the first loss times 0.1, Adam at 1e-3, 50,000 steps, FAMO's five starts, every loss less -21 (the first: -2.1). A
method that works at the representation takes the point itself for one, one of three batches three times the same.
"""

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reporting import Row, keep, parser, row

from mtl_jax import objectives

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
SCALE, LEAST, LOWER = 0.1, -21.0, 5e-6
STEPS, RECORDS, RATE = 50_000, 100, 1e-3
NEAR, EDGE = 0.05, 7.1  # On the front: the shortest convex combination of the gradients, both unscaled; x1 at most.
# Epochs of methods that count them.
OPTIONS: dict[str, dict[str, Any]] = {'stch': {'steps_per_epoch': 1_000}, 'dwa': {'steps_per_epoch': 1_000}}


def problem(x: Any) -> Any:
  """Both losses at a point [2], less their least values: 0 or more."""
  x1, x2 = x
  above, below = jnp.maximum(jnp.tanh(x2 / 2), 0), jnp.maximum(jnp.tanh(-x2 / 2), 0)
  first = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 - 7) - jnp.tanh(-x2)), LOWER)) + 6
  second = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 + 3) + jnp.tanh(-x2) + 2), LOWER)) + 6
  bowls = [((x1 - at) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20 for at in (7, -7)]
  return jnp.stack([SCALE * (first * above + bowls[0] * below - LEAST), second * above + bowls[1] * below - LEAST])


def make_step(name: str) -> Any:
  """One step of a method from every start, and its first carry."""
  objective = objectives.OBJECTIVES[name](**OPTIONS.get(name, {}))

  def losses_of(point: Any, heads: Any) -> Any:
    del heads
    losses = problem(point[0])
    return losses if objective.parts == 1 else jnp.stack([losses] * objective.parts)

  find = objectives.value_and_grad(losses_of, objective, represent=lambda point: point, chunk=0)
  tx = optax.adam(RATE)

  def begin(start: Any) -> Any:
    point = jnp.asarray(start)[None]  # As a batch of one row.
    return point, find.init(point, 2), tx.init(point)

  def step(carry: Any, key: Any) -> Any:
    point, state, optimizer = carry
    found = find(point, {}, state, key=key)
    updates, optimizer = tx.update(found.gradients[0], optimizer)
    point = optax.apply_updates(point, updates)
    return point, find.after(point, {}, found.state), optimizer

  return jax.vmap(begin)(jnp.asarray(STARTS)), jax.vmap(step, in_axes=(0, None))


def run(names: list[str], steps: int) -> tuple[np.ndarray, float, float]:
  """Points `[methods, starts, records + 1, 2]`, and the seconds that it took to compile and to run."""
  made = {name: make_step(name) for name in names}
  keys = jax.random.key(0)

  def one(carries: Any, t: Any) -> Any:
    return {name: made[name][1](carry, jax.random.fold_in(keys, t)) for name, carry in carries.items()}, None

  def record(carries: Any, times: Any) -> Any:
    carries, _ = jax.lax.scan(one, carries, times)
    return carries, jnp.stack([carries[name][0][:, 0] for name in names])

  times = jnp.arange(steps).reshape(min(RECORDS, steps), -1)
  began = time.monotonic()
  carries = {name: begin for name, (begin, _) in made.items()}
  compiled = jax.jit(partial(jax.lax.scan, record)).lower(carries, times).compile()
  compiling = time.monotonic() - began
  _, points = jax.block_until_ready(compiled(carries, times))
  first = np.broadcast_to(np.asarray(STARTS), (1, len(names), len(STARTS), 2))
  return np.concatenate([first, points]).transpose(1, 2, 0, 3), compiling, time.monotonic() - began - compiling


def ends(points: np.ndarray) -> dict[str, Any]:
  """The ends of a method's five ways: how many on the Pareto front, about the line from (-7, -8.3) to (7, -8.3)."""

  def residual(x: Any) -> Any:
    rows = jax.jacrev(problem)(x)
    return jnp.linalg.norm(objectives.aggregate(rows / jnp.asarray([[SCALE], [1.0]]), 'mgda'))

  last = points[:, -1]
  finite = np.isfinite(last).all(1)
  on = finite & (np.asarray(jax.jit(jax.vmap(residual))(jnp.nan_to_num(jnp.asarray(last)))) < NEAR)
  on &= (np.abs(last[:, 0]) < EDGE) & (last[:, 1] < -6)
  return {'on_front': int(on.sum()), 'x1': last[on, 0].tolist(), 'ends': last.tolist()}


def main() -> None:
  made = parser('Where every method goes on the toy problem of two losses in the plane.')
  made.add_argument('--methods', nargs='+', default=list(objectives.OBJECTIVES), choices=list(objectives.OBJECTIVES))
  made.add_argument('--steps', type=int, default=STEPS, help=f'a multiple of {RECORDS}')
  made.add_argument('--png', type=Path, metavar='FILE', help='draw the ways there')
  options = made.parse_args()
  if options.quick:
    options.methods, options.steps = [name for name in ('fixed', 'mgda', 'famo') if name in options.methods], 100
  points, compiling, running = run(options.methods, options.steps)
  rows: list[Row] = [row('compile', compiling, 's'), row(f'{options.steps} steps of all', running, 's')]
  print('| method | on the front, of 5 | there x1 is |\n|---|---|---|')
  for name, ways in zip(options.methods, points, strict=True):
    found = ends(ways)
    rows.append(row(f'{name}: on the front', found['on_front'], 'of 5') | {'ends': found['ends']})
    span = f'{min(found["x1"]):.2f} to {max(found["x1"]):.2f}' if found['x1'] else ''
    print(f'| {name} | {found["on_front"]} | {span} |')
  keep(rows, options)
  if options.png:
    draw(options.methods, points, options.png)


def draw(names: list[str], points: np.ndarray, path: Path) -> None:
  """A small panel for each method: contours of the mean loss, the front in grey, the five ways with their ends."""
  import matplotlib

  matplotlib.use('agg')
  import matplotlib.pyplot as plt
  from PIL import Image

  columns = min(6, len(names))
  grid = np.stack(np.meshgrid(np.linspace(-11, 11, 160), np.linspace(-11, 11, 160)))
  scaled = jax.vmap(jax.vmap(problem))(jnp.asarray(grid.transpose(1, 2, 0)))
  mean = np.asarray(scaled[..., 0] / SCALE + scaled[..., 1])
  figure, axes = plt.subplots(
    -(-len(names) // columns), columns, figsize=(1.5 * columns, 1.65 * -(-len(names) // columns)), squeeze=False
  )
  for axis in axes.flat[len(names) :]:
    axis.axis('off')
  for axis, name, ways in zip(axes.flat, names, points, strict=False):
    axis.contour(*grid, mean, levels=12, colors='0.85', linewidths=0.4)
    axis.plot([-7, 7], [-8.3, -8.3], color='0.6', linewidth=3, solid_capstyle='round')
    for way in ways:
      axis.plot(*way.T, linewidth=0.9)
      axis.plot(*way[-1], '.', markersize=4, color='black')
    axis.set(xlim=(-11, 11), ylim=(-11, 11), xticks=[], yticks=[])
    axis.set_title(name, fontsize=7, pad=2)
  figure.tight_layout(pad=0.3)
  figure.savefig(path, dpi=100)
  plt.close(figure)
  Image.open(path).convert('RGB').quantize(64).save(path, optimize=True)


if __name__ == '__main__':
  main()
