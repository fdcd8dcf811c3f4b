"""How fast images come to the step: decoded, streamed, gathered from device memory; and what the step itself needs.

    python benchmarks/input.py [--source DIR] [--json benchmarks/results/input.json]

Faces are drawn unless a folder in CelebA's layout is given. Rates are the best of several rounds in turn.
"""

import argparse
import dataclasses
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import simplejpeg
from ml_collections import ConfigDict
from reporting import Row, best_rates, calls_for, parser, report, row
from running import Stepper

from mtl_jax.config import validate
from mtl_jax.configs import default
from mtl_jax.data.input import augment
from mtl_jax.data.input.augment import Augmentation
from mtl_jax.data.input.mixture import load_split
from mtl_jax.data.source import ListedImages
from mtl_jax.data.sources.celeba import open_celeba
from mtl_jax.data.store.images import ENCODINGS, THREADS
from mtl_jax.data.store.reader import Store, open_store
from mtl_jax.data.store.writer import prepare
from mtl_jax.data.synthetic import sets
from mtl_jax.training import building, loop
from mtl_jax.training.building import Run

SIZES = ((64, 64), (128, 128), (218, 178))  # Height and width in pixels.
QUICK = {'num': 200, 'batch_size': 16, 'width': 4, 'rounds': 1, 'secs': 0.1}
AT_ONCE = 8  # Steps a dispatch where an accelerator is fed.
TARGETS = {'streamed jpeg': 0.95, 'streamed decoded': 0.95, 'resident': 0.98}


def main() -> None:
  options = flags().parse_args()
  if options.quick:
    vars(options).update(QUICK)
  rows: list[Row] = []
  with tempfile.TemporaryDirectory() as scratch:
    drawn = partial(sets.draw, sets.FACES, Path(scratch) / 'source', num=options.num, seed=0)
    source = open_celeba(options.source) if options.source else drawn()
    for size in ((32, 32),) if options.quick else SIZES:
      stores = prepared(source, Path(scratch), size)
      decoded = decoding(stores['jpeg'], options)
      found = [*decoded, *training(stores, options, bare=decoded[1], every=decoded[2])]
      rows += [{**one, 'name': f'{size[1]}x{size[0]}: {one["name"]}'} for one in found]
  report(rows, options)


def flags() -> argparse.ArgumentParser:
  on_cpu = jax.default_backend() == 'cpu'
  made = parser('images/s of each way of the input')
  made.add_argument('--source', type=Path, metavar='DIR', help="faces in CelebA's layout; by default some are drawn")
  made.add_argument('--num', type=int, default=2000, help='faces to draw')
  made.add_argument('--batch_size', type=int, default=64 if on_cpu else 256 * jax.device_count())
  made.add_argument('--width', type=int, default=16 if on_cpu else 64, help='features of the first stage of the ResNet')
  made.add_argument('--rounds', type=int, default=5)
  made.add_argument('--secs', type=float, default=4.0, help='seconds that a round of training is to take')
  return made


def prepared(source: ListedImages, scratch: Path, size: tuple[int, int]) -> dict[str, Store]:
  """The set in both encodings."""
  stores = {}
  for encoding in ENCODINGS:
    out = scratch / f'{size[0]}x{size[1]}-{encoding}'
    prepare(source, out, image_size=size, encoding=encoding, log=lambda _: None)
    stores[encoding] = open_store(out)
  return stores


def decoding(store: Store, options: argparse.Namespace) -> list[Row]:
  """One core's bare decoder against all that the loader does to read and decode the same JPEGs."""
  split = load_split(store, 'train', store.tasks)
  positions = np.random.default_rng(0).permutation(len(split))[: 8 * options.batch_size]
  content = (store.directory / ENCODINGS['jpeg']).read_bytes()
  offsets = np.load(store.directory / 'offsets.npy')
  jpegs = [content[offsets[row] : offsets[row + 1]] for row in split.example_id[positions]]
  slots: Any = np.empty((THREADS, len(jpegs), *split.images.shape[1:]), np.uint8)
  taken: list[np.ndarray] = []

  def bare(thread: int = 0) -> int:
    for jpeg, slot in zip(jpegs, slots[thread], strict=True):
      simplejpeg.decode_jpeg(jpeg, buffer=slot)
    return len(jpegs)

  def take() -> int:
    taken[:] = [split.images.take(positions)]
    return len(positions)

  with ThreadPoolExecutor(THREADS) as pool:

    def bare_everywhere() -> int:
      return sum(pool.map(bare, range(THREADS)))

    parts = {'bare': bare, 'bare everywhere': bare_everywhere, 'take': take}
    rates = best_rates(parts, rounds=3 * options.rounds)
  np.testing.assert_array_equal(taken[0], slots[0])  # Both decoded the same images.
  every = row(f'{THREADS} core(s) x bare decode', THREADS * rates['bare'], 'images/s')
  return [
    row('a JPEG', float(np.mean([len(jpeg) for jpeg in jpegs])), 'bytes'),
    row('bare libjpeg-turbo decode, one core', rates['bare'], 'images/s'),
    every,
    row('bare decode on all cores at once', rates['bare everywhere'], 'images/s', to=every),
    row('read, checked and decoded, all cores', rates['take'], 'images/s', to=every),
  ]


def training(stores: dict[str, Store], options: argparse.Namespace, *, bare: Row, every: Row) -> list[Row]:
  """What comes to the devices, and the rate of the step fed by it, against the step fed with a constant batch."""
  streamed = building.build(config(stores['jpeg'], 'streamed', options), stores['jpeg'])
  decoded = load_split(stores['decoded'], 'train', streamed.tasks)
  runs = {
    'streamed jpeg': streamed,
    'streamed decoded': dataclasses.replace(streamed, train=decoded),
    'resident': building.build(config(stores['jpeg'], 'resident', options), stores['jpeg']),
  }
  steppers = {'constant': Stepper(streamed, constant=True)}
  steppers |= {name: Stepper(run) for name, run in runs.items()}
  for stepper in steppers.values():
    stepper.advance(1)  # Compiles.
  dispatches = calls_for(steppers['constant'].advance, options.secs)
  parts = {name: partial(stepper.advance, dispatches) for name, stepper in steppers.items()}
  rates = best_rates(parts, rounds=options.rounds)
  for stepper in steppers.values():
    stepper.check()
  step = row('train step, constant batch', rates['constant'], 'images/s', to=bare)
  rows = [step, *feeding(runs, options, every=every, step=step)]
  rows += [row(f'training, {name}', rates[name], 'images/s', to=step, target=aim) for name, aim in TARGETS.items()]
  return [*rows, hiccup(runs['resident'], secs_per_step=options.batch_size / step['value']), memory(runs, options)]


def config(store: Store, mode: str, options: argparse.Namespace) -> ConfigDict:
  made = default.get_config()
  made.update_from_flattened_dict(
    {
      'data.dir': str(store.directory),
      'data.mode': mode,
      'model.width': options.width,
      'train.batch_size': options.batch_size,
      'train.steps': 10**6,
      'train.log_every_steps': 10**6,
      'eval.every_steps': 0,
      'checkpoint.every_steps': 10**6,
    }
  )
  validate(made)
  return made.lock()


def feeding(runs: dict[str, Run], options: argparse.Namespace, *, every: Row, step: Row) -> list[Row]:
  """What each way brings to the devices while they do nothing else, as many steps at once as an accelerator takes."""
  runs = {name: at_once(run) for name, run in runs.items()}
  batches = max(2, 2 * len(runs['resident'].train) // options.batch_size)  # Two epochs.
  parts = {name: partial(stream, runs[name], batches) for name in ('streamed jpeg', 'streamed decoded')}
  parts['resident'] = gatherer(runs['resident'], batches)
  rates = best_rates(parts, rounds=options.rounds)
  return [
    row('streamed jpeg to the devices', rates['streamed jpeg'], 'images/s', to=every, target=0.6),
    row('streamed decoded to the devices', rates['streamed decoded'], 'images/s', to=every),
    row('resident: gathered and augmented', rates['resident'], 'images/s', to=every),
    row('resident: gathered and augmented', rates['resident'], 'images/s', to=step),
  ]


def at_once(run: Run) -> Run:
  """The run with as many steps a dispatch as an accelerator takes."""
  config = ConfigDict(run.config)
  config.train.steps_per_dispatch = AT_ONCE
  return dataclasses.replace(run, config=config)


def stream(run: Run, batches: int) -> int:
  images, arrived = 0, None
  for size, items in islice(loop.input_items(run, 0), max(2, batches // run.steps_per_dispatch)):
    images, arrived = images + size * run.config.train.batch_size, items
  jax.block_until_ready(arrived)
  return images


def gatherer(run: Run, batches: int) -> Any:
  """Gathers and augments batches from device memory; the first is checked against the streamed one."""
  source, (size, items) = run.input.place(), next(loop.input_items(run, 0))
  settings = Augmentation(**run.config.data.augment)

  def fetch(source: Any, items: Any, number: Any) -> Any:
    return run.input.fetch(source, jax.tree.map(lambda values: values[number], items))

  def fetch_augmented(source: Any, items: Any, number: Any) -> Any:
    batch, key = fetch(source, items, number), jax.random.key(0)
    images = augment.normalize(batch['image'])
    return augment.augment(images, batch['labels'], batch['mask'], key=key, tasks=run.tasks, settings=settings)

  gathered = jax.device_get(jax.jit(fetch)(source, items, 0))
  expected = run.train.read(gathered['example_id'] - run.train.example_id[0])
  np.testing.assert_array_equal(gathered['image'], expected['image'])
  compiled = jax.jit(fetch_augmented)
  jax.block_until_ready(compiled(source, items, 0))

  def gather() -> int:
    flying = []
    for number in range(batches):
      flying.append(compiled(source, items, number % size))
      if len(flying) > 2:  # Not all at once in memory.
        jax.block_until_ready(flying.pop(0))
    jax.block_until_ready(flying)
    return batches * run.config.train.batch_size

  return gather


def hiccup(run: Run, *, secs_per_step: float) -> Row:
  """The longest that the resident way keeps the step waiting over two epochs, where their starts are the dearest."""
  waits, items = [], loop.input_items(run, 0)
  for _ in range(max(8, 2 * len(run.train) // run.config.train.batch_size)):
    began = time.perf_counter()
    size, _ = next(items)
    waits.append((time.perf_counter() - began) / size)
  longest = max(waits[4:]) - float(np.median(waits))  # The first ones start threads.
  return row('resident: longest wait for positions', longest / secs_per_step, 'steps', target=1)


def memory(runs: dict[str, Run], options: argparse.Namespace) -> Row:
  """How much this process grows while an epoch is streamed, after one that has filled every buffer."""
  run = runs['streamed jpeg']
  batches = max(2, len(run.train) // options.batch_size)
  stream(run, batches)
  before = resident_bytes()
  stream(run, batches)
  return row('host memory gained over an epoch of streaming', (resident_bytes() - before) / 1e6, 'MB')


def resident_bytes() -> int:
  lines = Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmRSS:'))


if __name__ == '__main__':
  main()
