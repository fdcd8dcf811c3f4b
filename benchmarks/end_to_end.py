"""Training with the resident and with the streamed input, against the same step on a constant batch.

    python benchmarks/end_to_end.py [--json benchmarks/results/end_to_end.json]

Images are random bytes in the host's memory, so streaming means gathering rows and sending them, not decoding: that is
`input.py`. Ratios are medians over alternating rounds, with the lowest and highest round.
"""

import argparse
from functools import partial
from typing import Any

import absent  # noqa: F401
import jax
from reporting import Row, against_first, calls_for, parser, rates_in_turn, report
from running import Stepper, make_run, make_split
from workload import Workload

ON_CPU = (Workload('resnet18', 64, 64, 'float32', width=32), 2_048)  # With the number of images.
ON_ACCELERATOR = (Workload('resnet18', 128, 1024, 'bfloat16'), 16_384)
QUICK = (Workload('convnet', 8, 8, 'float32', width=4), 64)
TARGET = 0.98


def main() -> None:
  options = flags().parse_args()
  if options.quick:
    options.rounds, options.round_secs = 2, 0.05
  on_cpu = jax.default_backend() == 'cpu'
  workload, num_images = QUICK if options.quick else ON_CPU if on_cpu else ON_ACCELERATOR
  split = make_split(workload, num_images)
  steppers = {
    'constant batch': Stepper(make_run(workload, split, mode='streamed'), constant=True),
    'resident': Stepper(make_run(workload, split, mode='resident')),
    'streamed': Stepper(make_run(workload, split, mode='streamed')),
  }
  report(measure(workload, steppers, options), options)


def flags() -> argparse.ArgumentParser:
  made = parser('Training end to end against the step alone.')
  made.add_argument('--rounds', type=int, default=7)
  made.add_argument('--round_secs', type=float, default=2.0, help='seconds that a round of steps is to take')
  return made


def measure(workload: Workload, steppers: dict[str, Any], options: argparse.Namespace) -> list[Row]:
  """Rates of each, in turn."""
  for stepper in steppers.values():
    stepper.advance(1)  # Compiles.
  dispatches = calls_for(steppers['constant batch'].advance, options.round_secs)
  parts = {name: partial(stepper.advance, dispatches) for name, stepper in steppers.items()}
  rates = rates_in_turn(parts, rounds=options.rounds)
  for stepper in steppers.values():
    stepper.check()
  return against_first(workload.title, rates, target=TARGET)


if __name__ == '__main__':
  main()
