"""The steps of one call of a compiled program: how many, and when the host has something else to do in between."""

import math
from collections.abc import Iterator, Sequence

import jax
from ml_collections import ConfigDict

from mtl_jax.data.input.pipeline import Split


def dispatches(steps: int, *, at_once: int, looks: Sequence[int], first: int = 0) -> Iterator[tuple[int, int]]:
  """First step and number of steps of each dispatch: full ones, and single steps up to where the host must look.

  With two sizes alone there are two programs to compile.

  Args:
    steps: of the run.
    at_once: steps of a full dispatch.
    looks: every so many steps the host has something to do; 0: never.
    first: where to begin.
  """
  step = first
  while step < steps:
    stop = min([steps] + [step - step % every + every for every in looks if every])
    size = at_once if step + at_once <= stop else 1
    yield step, size
    step += size


def steps_at_once(config: ConfigDict, train: Split) -> int:
  """The steps of a full dispatch: what the config asks for, or what suits the device and the split."""
  asked = config.train.steps_per_dispatch
  if asked or unrolled(train):
    return asked or 1
  return 8 if 'image' in train.inputs else steps_between_looks(config)


def unrolled(train: Split) -> bool:
  """True where steps are compiled one after another, not in a loop: on a CPU a loop makes convolutions slow.

  Features `[n, f]` meet none.
  """
  return jax.default_backend() == 'cpu' and any(len(values.shape) > 2 for values in train.inputs.values())


def steps_between_looks(config: ConfigDict) -> int:
  """The most steps, up to 64, that fill the time between two looks of the host exactly: for steps that are short."""
  intervals = (config.train.log_every_steps, config.eval.every_steps, config.checkpoint.every_steps)
  between = math.gcd(*intervals)  # Those that are 0 do not count.
  return max(steps for steps in range(1, 65) if between % steps == 0)
