"""Logs the model, data and devices of a run."""

import logging

import jax

from mtl_jax.data.input.augment import augmentation_warnings
from mtl_jax.models import cost
from mtl_jax.platform import sharding
from mtl_jax.run.checkpoint import TrainProgress
from mtl_jax.training import splits
from mtl_jax.training.building import Run

log = logging.getLogger('mtl_jax')


def describe(run: Run, progress: TrainProgress) -> None:
  """Logs the model, the data and the devices."""
  config = run.config
  height, width = run.store.image_size
  variables = jax.eval_shape(run.make_state).variables
  learned, frozen = (cost.num_parameters(variables.get(kind, {})) / 1e6 for kind in ('params', 'frozen'))
  for line in ['parameters:', *cost.parameter_table(variables['params']).splitlines()]:
    log.info(line)
  flops = cost.flops(run.model.outputs, variables, (height, width, 3))
  log.info(
    '%s: %s, %s, %s an image forward, %dx%d, tasks %s; '
    '%d train and %d validation examples; %d %s device(s), %d process(es)',
    f'resuming at step {progress.step}' if progress.step else 'training',
    config.model.backbone,
    f'{learned:.2f} M parameters' + (f' and {frozen:.2f} M frozen ones' if frozen else ''),
    f'{flops / 1e9:.3g} GFLOPs' if flops else 'FLOPs unknown',
    height,
    width,
    ', '.join(task.name for task in run.tasks),
    len(run.train),
    len(run.val) if run.val else 0,
    jax.device_count(),
    jax.devices()[0].platform,
    jax.process_count(),
  )
  if run.val is None:
    log.warning('warning: the data has no validation split: no step is the best, and the last is kept')
  for line in augmentation_warnings(run.tasks, run.augmentation):
    log.warning(line)
  if len(run.train.parts) > 1:
    for part, size, rows in zip(run.store.parts, run.train.parts, splits.rows_by_set(config, run.train), strict=True):
      log.info('each batch holds %d rows of %s, which has %d', rows, part.directory, size)
  log.info('input: %s', run.input.reason)
  on_each, in_all = (size / 1e6 for size in sharding.bytes_of_state(run.mesh, run.make_state))
  shared = f' of {in_all:.1f} MB, large arrays divided over {num}' if (num := run.mesh.shape['model']) > 1 else ''
  log.info('state: %.1f MB on every device%s', on_each, shared)
