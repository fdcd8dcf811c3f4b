"""What each way of sharing costs beside hard sharing: parameters, and FLOPs of a forward pass of one image.

Run as `python benchmarks/sharing.py [--tasks K] [--image_size N] [--width N] [--quick]`. Tasks are K groups of ten
binary attributes. FLOPs are XLA's own count, of the program before it is optimised; nothing is computed or timed. In
the loss, and so not in the count: the penalties of soft, sluice, dselect_k and multilinear.
"""

import argparse

import jax
import jax.numpy as jnp

from mtl_jax.models.multitask import MultiTaskModel
from mtl_jax.models.resnet import resnet18
from mtl_jax.models.sharing import SHARING


def cost(way: str, *, tasks: tuple[str, ...], size: int, width: int) -> tuple[int, float]:
  """Parameters and FLOPs of a model with ten outputs a task."""
  shared = SHARING[way](resnet18(width=width, stem='imagenet'), tasks)
  model = MultiTaskModel(shared, tuple((task, 10) for task in tasks))
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  lowered = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images)
  analysis = lowered.cost_analysis()
  assert analysis is not None
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params'])), analysis['flops']


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else '')
  parser.add_argument('--tasks', type=int, default=2)
  parser.add_argument('--image_size', type=int, default=224)
  parser.add_argument('--width', type=int, default=64)
  parser.add_argument('--quick', action='store_true', help='a narrow net and small images')
  options = parser.parse_args()
  size, width = (64, 8) if options.quick else (options.image_size, options.width)
  tasks = tuple(f'task{i}' for i in range(options.tasks))
  parameters, flops = cost('hard', tasks=tasks, size=size, width=width)
  print(f'ResNet-18 of width {width}, {options.tasks} tasks, {size}x{size}, default options')
  print('| sharing | parameters, M | to hard | FLOPs, G | to hard |\n|---|---|---|---|---|')
  for way in SHARING:
    own, work = cost(way, tasks=tasks, size=size, width=width)
    print(f'| {way} | {own / 1e6:.2f} | {own / parameters:.2f} | {work / 1e9:.2f} | {work / flops:.2f} |', flush=True)


if __name__ == '__main__':
  main()
