"""Handles steps whose loss or gradient is not finite: reports them, and passes over their batches."""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from mtl_jax.errors import DivergedError
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training.step import LEFT_OUT

log = logging.getLogger('mtl_jax')

MAX_NAMED = 32  # Example ids in a message.
ADVICE = (
  'see whether that loss or those examples are odd, try a lower config.optimizer.learning_rate, or set '
  'config.train.on_nonfinite to skip or rollback'
)


class NonFiniteStep(DivergedError):
  """A step whose loss or gradient was NaN or infinite; nothing after it was saved.

  Attributes:
    step: its number, from 1.
  """

  def __init__(self, message: str, step: int):
    super().__init__(message)
    self.step = step


def batch_number(step: int, passed_over: Sequence[int]) -> int:
  """Number of the batch that step `step`, from 0, takes: the batches in order, without those that are passed over."""
  for number in sorted(passed_over):
    step += number <= step
  return step


def finite_steps(
  values: Mapping[str, Shaped[np.ndarray, ' s']],
  progress: TrainProgress,
  *,
  settings: ConfigDict,
  examples: Callable[[int], np.ndarray],
) -> dict[str, Shaped[np.ndarray, ' n']]:
  """Keeps, of the metrics `[s]` of the `s` steps up to `progress.step`, those of the steps that were finite.

  Args:
    values: by name; with `LEFT_OUT` among them where such steps change nothing.
    progress: counts the steps that were left out.
    settings: the config's `train`.
    examples: from the number of a step to the ids of its batch's examples.

  Raises:
    NonFiniteStep: for a step that was not finite and was not left out, or was one too many.
  """
  values = dict(values)
  left_out = values.pop(LEFT_OUT, None)
  finite = np.all([np.isfinite(each) for each in values.values()], axis=0)
  for index in np.flatnonzero(~finite):
    step = progress.step - len(finite) + 1 + int(index)
    said = _describe({name: each[index] for name, each in values.items()}, step, examples(step))
    if left_out is None:
      raise NonFiniteStep(f'{said} and was not saved', step)
    progress.left_out += 1
    check_count(progress.left_out, settings, NonFiniteStep(said, step))
    log.warning('warning: %s; its update was left out, as those of %d steps so far', said, progress.left_out)
  return {name: each[finite] for name, each in values.items()}


def check_count(count: int, settings: ConfigDict, last: NonFiniteStep) -> None:
  """Raises NonFiniteStep if so many steps were left out or gone back for that the run is not to go on."""
  if count > settings.max_nonfinite:
    raise NonFiniteStep(f'{last}, one more than config.train.max_nonfinite allows', last.step) from last


def _describe(values: Mapping[str, float], step: int, examples: np.ndarray) -> str:
  """Describes which metric became what, at which step, on which examples; a task is named before the sum."""
  name = min((name for name, value in values.items() if not np.isfinite(value)), key=lambda name: '/' not in name)
  value = values[name]
  ids = ', '.join(map(str, examples[:MAX_NAMED].tolist()))
  more = f' and {len(examples) - MAX_NAMED} more' if len(examples) > MAX_NAMED else ''
  return f'{name} became {value} at step {step}, whose batch holds the examples {ids}{more}'
