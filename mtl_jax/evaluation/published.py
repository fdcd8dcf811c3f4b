"""Writes a trained model as a folder to publish: named weights, a JSON description, and a loader in plain JAX."""

import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

import mtl_jax
from mtl_jax import tasks
from mtl_jax.config import parts
from mtl_jax.data.input import augment
from mtl_jax.evaluation import exported_loader, plain_models, stablehlo
from mtl_jax.models import convnet, convnext, heads, mobilenet, multitask, own_weights, resnet, sharing, vit
from mtl_jax.models.backbone import has_small_stem
from mtl_jax.models.sharing.way import copy_name, name_of
from mtl_jax.platform import atomic_write
from mtl_jax.run import workdir
from mtl_jax.run.trained_model import TrainedModel

log = logging.getLogger('mtl_jax')

DESCRIPTION, LOADER = 'config.json', 'load_model.py'

# What `plain_models` has, by our classes.
BACKBONES: dict[type, Any] = {
  convnet.ConvNet: plain_models.convnet,
  convnet.CelebACNN: plain_models.celeba_cnn,
  resnet.ResNet: plain_models.resnet,
  mobilenet.MobileNetV2: plain_models.mobilenet,
  convnext.ConvNeXt: plain_models.convnext,
  vit.VisionTransformer: plain_models.transformer,
}
NORMS = {'batch': plain_models.batch_norm, 'group': plain_models.group_norm, 'none': plain_models.affine}
HEADS: dict[type, Any] = {
  heads.Mlp: plain_models.mlp,
  heads.Linear: plain_models.linear,
  heads.PerOutput: plain_models.per_output,
  heads.SoftArgmax: plain_models.soft_argmax,
  heads.UpsampledSoftArgmax: plain_models.soft_argmax,
  heads.Decoder: plain_models.decoder,
}
KINDS: dict[type, Any] = {
  tasks.BinaryTask: plain_models.binary,
  tasks.CategoricalTask: plain_models.categorical,
  tasks.LandmarkTask: plain_models.standardized,
  tasks.RegressionTask: plain_models.standardized,
  tasks.OrdinalTask: plain_models.ordinal,
  tasks.DenseTask: plain_models.dense_map,
}
ONE_NET, NET_EACH = (sharing.Hard, sharing.Multilinear), (sharing.Separate, sharing.Soft)


class NotWritten(Exception):
  """A part of a network for which `plain_models` has no function; says which."""


def write(model: TrainedModel, out: Path) -> None:
  """Writes weights, description and loader into the folder `out`.

  Where a part of the network is not written in plain JAX, the loader is that of the program, which `stablehlo` writes.
  """
  variables = jax.device_get(own_weights.flatten(model.variables))
  weights = {name: np.ascontiguousarray(value, np.float32) for name, value in variables.items()}
  described = {
    'model_type': 'mtl_jax',
    'run': stablehlo.describe_run(model),
    'versions': {'mtl_jax': mtl_jax.__version__, 'jax': jax.__version__},
    'image_size': list(model.facts.image_size),
    'fit': model.facts.fit,
    'mean': augment.MEAN,
    'std': augment.STD,
    'tasks': [{'name': task.name, **stablehlo.describe_outputs(task)} for task in model.tasks],
  }
  try:
    plain = describe_plainly(model)
  except NotWritten as lacking:
    log.warning('warning: %s is not written in plain JAX: %s runs a program instead', lacking, stablehlo.LOADER)
    stablehlo.write(model, out)
  else:
    of_tasks = plain.pop('tasks')
    described |= plain | {'tasks': [one | other for one, other in zip(described['tasks'], of_tasks, strict=True)]}
    atomic_write.write(out / LOADER, loader(described))
  atomic_write.write(out / own_weights.FILE, save(weights, _stem(model)))
  workdir.write_json(out / DESCRIPTION, described)
  log.info('%s: step %d, %d arrays', out / own_weights.FILE, model.step, len(weights))


def _stem(model: TrainedModel) -> dict[str, str]:
  """The first layers that the weights are of, for who begins with them; nothing where the backbone has no choice."""
  stem = getattr(multitask.backbone_from_config(model.config.model), 'stem', None)
  if stem is None:
    return {}
  return {own_weights.STEM: 'small' if has_small_stem(stem, (1, *model.facts.image_size, 3)) else 'imagenet'}


def describe_plainly(model: TrainedModel) -> dict[str, Any]:
  """The fields of config.json that `plain_models.apply` reads, of `tasks` those to add. Raises NotWritten."""
  settings = model.config.model
  way, backbone = multitask.way_of_sharing(settings), multitask.backbone_from_config(settings)
  if not (way in ONE_NET or (way in NET_EACH and not settings.freeze)):
    raise NotWritten(f'sharing by {parts.title(settings.sharing)}' + ' over frozen stages' * (way in NET_EACH))
  plain = _name(BACKBONES, type(backbone), f'the backbone {parts.title(settings.backbone)}')
  norm = getattr(backbone, 'norm', 'none')
  of_tasks = []
  for task in model.tasks:
    head, stats = multitask.head_of(settings, task), model.label_stats[task.name]
    units = {'mean': np.asarray(stats.mean).tolist(), 'std': np.asarray(stats.std).tolist()}
    of_tasks.append(
      {
        'backbone': copy_name(task.name) if way in NET_EACH else 'backbone',
        'head': _name(HEADS, head, f'the head {head.__name__}'),
        'weights': name_of('head', task.name),
        'predicts': _name(KINDS, type(task), f'a task of kind {task.kind}'),
        **(units if task.standardized else {}),
      }
    )
  return {
    'backbone': plain,
    'norm': 'no_norm' if norm == 'none' and plain == 'convnet' else NORMS[norm].__name__,
    'stem': _stem(model).get(own_weights.STEM),
    'blocks': list(getattr(backbone, 'stage_sizes', [getattr(backbone, 'depth', 0)])),
    'trunk': len(settings.trunk_features),
    'tasks': of_tasks,
  }


def _name(functions: Mapping[type, Any], part: type, title: str) -> str:
  if part not in functions:
    raise NotWritten(title)
  return functions[part].__name__


def loader(described: Mapping[str, Any]) -> str:
  """The text of `plain_models` without what a model that is so described does not need."""
  chosen = {
    'BACKBONES': {described['backbone']},
    'NORMS': {described['norm']},
    'HEADS': {task['head'] for task in described['tasks']},
    'KINDS': {task['predicts'] for task in described['tasks']},
  }
  head, *blocks = Path(plain_models.__file__).read_text().rstrip().split('\n\n\n')
  head = ''.join(line for line in head.splitlines(keepends=True) if not line.startswith('from mtl_jax'))
  texts = {found[1]: text for text in blocks if (found := re.match(r'def (\w+)', text))}
  texts['options'] = inspect.getsource(exported_loader.options).rstrip()
  wanted, open_ = set(), {'apply', 'load'}.union(*chosen.values())
  while open_:
    wanted |= open_
    open_ = {name for one in open_ for name in re.findall(r'\w+(?=\()', texts[one])} & texts.keys() - wanted
  tables = [f'{name} = {{{", ".join(f"{one!r}: {one}" for one in sorted(own))}}}' for name, own in chosen.items()]
  used = [text for name, text in texts.items() if name in wanted]
  return '\n\n'.join([head.rstrip(), *used, '\n'.join(tables)]) + '\n'
