"""What each way of sharing costs beside hard sharing: parameters, and FLOPs of a forward pass of one image.

Run as `python benchmarks/sharing.py [--tasks K] [--image_size N] [--width N] [--quick] [--json FILE]`. Tasks are K
groups of ten binary attributes. FLOPs are XLA's own count, of the program before it is optimised; nothing is computed
or timed. In the loss, and so not in the count: the penalties of soft, sluice, dselect_k and multilinear.
"""

from functools import partial

import jax
import jax.numpy as jnp
from reporting import Row, keep, parser, row

from mtl_jax.models.cost import flops, num_parameters
from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.resnet import resnet18
from mtl_jax.models.sharing import SHARING


def cost(way: str, *, tasks: tuple[str, ...], size: int, width: int) -> tuple[int, float]:
  """Parameters and FLOPs of a model with ten outputs a task."""
  shared = SHARING[way](resnet18(width=width, stem='imagenet'), tasks)
  model = MultiTaskModel(shared, tuple((task, 10) for task in tasks))
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  work = flops(partial(model.apply, train=False), variables, (size, size, 3))
  assert work is not None
  return num_parameters(variables['params']), work


def main() -> None:
  made = parser(str(__doc__).splitlines()[0])
  made.add_argument('--tasks', type=int, default=2)
  made.add_argument('--image_size', type=int, default=224)
  made.add_argument('--width', type=int, default=64)
  options = made.parse_args()
  if options.quick:
    options.image_size, options.width = 64, 8
  size, width = options.image_size, options.width
  tasks = tuple(f'task{i}' for i in range(options.tasks))
  own, work = cost('hard', tasks=tasks, size=size, width=width)
  parameters, forward = row('hard: parameters', own, 'parameters'), row('hard: forward pass', work, 'FLOPs')
  print(f'ResNet-18 of width {width}, {options.tasks} tasks, {size}x{size}, default options')
  print('| sharing | parameters, M | to hard | FLOPs, G | to hard |\n|---|---|---|---|---|')
  rows: list[Row] = []
  for way in SHARING:
    own, work = cost(way, tasks=tasks, size=size, width=width)
    mine = row(f'{way}: parameters', own, 'parameters', to=parameters)
    passed = row(f'{way}: forward pass', work, 'FLOPs', to=forward)
    print(f'| {way} | {own / 1e6:.2f} | {mine["ratio"]:.2f} | {work / 1e9:.2f} | {passed["ratio"]:.2f} |', flush=True)
    rows += [mine, passed]
  keep(rows, options)


if __name__ == '__main__':
  main()
