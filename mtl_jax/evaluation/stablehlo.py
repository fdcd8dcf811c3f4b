"""Exports a trained model as one StableHLO program with its weights inside, a description, and a loader."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

import mtl_jax
from mtl_jax.config import parts, with_fields
from mtl_jax.evaluation import exported_loader
from mtl_jax.evaluation.step import predict_step
from mtl_jax.models import convolution, multitask
from mtl_jax.platform import atomic_write
from mtl_jax.run import workdir
from mtl_jax.run.trained_model import TrainedModel
from mtl_jax.tasks import Task

log = logging.getLogger('mtl_jax')

PLATFORMS = ('cpu', 'cuda', 'tpu')
PROGRAM, DESCRIPTION, LOADER = 'model.stablehlo', 'model.json', 'load.py'


def write(model: TrainedModel, out: Path) -> None:
  """Writes the program, its description and the loader into the folder `out`."""
  exported = program(model)
  program_bytes = bytes(exported.serialize())
  atomic_write.write(out / PROGRAM, program_bytes)
  workdir.write_json(out / DESCRIPTION, describe(model, exported))
  atomic_write.write(out / LOADER, Path(exported_loader.__file__).read_bytes())
  megabytes = len(program_bytes) / 1e6
  log.info('%s: step %d, %.1f MB, for %s', out / PROGRAM, model.step, megabytes, ', '.join(PLATFORMS))


def program(model: TrainedModel) -> jax.export.Exported:
  """`predict_step` of one model for all platforms, its weights inside, for any number of images."""
  (batch,) = jax.export.symbolic_shape('b')
  images = jax.ShapeDtypeStruct((batch, *model.facts.image_size, 3), jnp.uint8)
  with convolution.chosen_by_platform():
    return jax.export.export(jax.jit(predictor(model)), platforms=PLATFORMS)(images)


def predictor(model: TrainedModel) -> Callable[[Any], dict[str, Any]]:
  """Images to predictions, with the weights as constants. What computes in `auto` does so in float32 everywhere."""
  config = with_fields(model.config, model__dtype=_dtype(model))
  network = multitask.from_config(config.model, model.tasks)
  variables, label_stats = jax.device_get((model.variables, model.label_stats))
  step = partial(predict_step, model=network, tasks=model.tasks)

  def predict(images):
    return step(variables, label_stats, images)[1]

  return predict


def describe(model: TrainedModel, exported: jax.export.Exported) -> dict[str, Any]:
  """Describes the program to its callers: shapes, names and units of inputs and outputs, and versions."""
  height, width = model.facts.image_size
  results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
  return {
    'input': {
      'dtype': 'uint8',
      'shape': ['b', height, width, 3],
      'image_size': [height, width],
      'fit': model.facts.fit,
      'layout': 'NHWC, RGB from 0 to 255; normalisation is part of the program',
    },
    'outputs': {task.name: {**describe_outputs(task), 'dtype': str(results[task.name].dtype)} for task in model.tasks},
    'computes_in': _dtype(model),
    'platforms': list(exported.platforms),
    'run': describe_run(model),
    'versions': {
      'mtl_jax': mtl_jax.__version__,
      'jax': jax.__version__,
      'calling_convention': exported.calling_convention_version,
    },
  }


def describe_run(model: TrainedModel) -> dict[str, Any]:
  """Describes a model's origin."""
  settings = model.config.model
  return {
    'step': model.step,
    'backbone': parts.title(settings.backbone),
    'sharing': parts.title(settings.sharing),
    'data_checksum': model.facts.checksum,
  }


def describe_outputs(task: Task) -> dict[str, Any]:
  """Describes a task's array to its readers: its columns in order, and their unit."""
  shape = ['b', *task.prediction_shape]
  return {'kind': task.kind, 'shape': shape, 'names': list(task.output_names), 'unit': task.unit}


def _dtype(model: TrainedModel) -> str:
  asked = model.config.model.dtype
  return 'float32' if asked == 'auto' else asked
