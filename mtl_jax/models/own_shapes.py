"""Evaluates the shapes of a network and tasks of the user's own: a mistake is one line before the first step."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.errors import ConfigError
from mtl_jax.models import multitask
from mtl_jax.models.backbone import Backbone, Representation
from mtl_jax.models.network import RANDOM, Network
from mtl_jax.tasks import Task, is_built_in, source

ROWS = 7  # Of the batch.
BACKBONE, SHARING = 'config.model.backbone', 'config.model.sharing'
AUTOMATIC = re.compile(r'[A-Z]\w*_\d+')  # The name that Flax gives to a layer without one.


def check(network: Network, settings: ConfigDict, tasks: Sequence[Task], *, image_size: tuple[int, int]) -> None:
  """Passes a batch through the network in training and evaluation, without computing it, unless all is built in.

  Args:
    network: of these settings and tasks.
    settings: the group `model` of a configuration.
    tasks: that it has heads for.
    image_size: height and width in pixels.

  Raises:
    ConfigError: for a part of the user's own that fails, or gives another shape than it must; it names field and part.
  """
  heads = [(task, *multitask.head_name(settings, task)) for task in tasks]
  names = settings.backbone, settings.sharing, *(name for _, name, _ in heads)
  if all(map(is_built_in, tasks)) and not any(map(parts.is_own, names)):
    return
  images = jax.ShapeDtypeStruct((ROWS, *image_size, 3), jnp.float32)
  if parts.is_own(settings.backbone):
    _check_backbone(multitask.backbone_from_config(settings), settings.backbone, images)
  with parts.wrap_errors(settings.backbone, field=BACKBONE), parts.wrap_errors(settings.sharing, field=SHARING):
    found, _ = _run(network.module, images, trains=True, method='encode')
  of_tasks = dict.fromkeys((task.name for task in tasks), found) if isinstance(found, Representation) else found
  if not (isinstance(of_tasks, Mapping) and all(isinstance(of_tasks.get(task.name), Representation) for task in tasks)):
    raise ConfigError(f'{SHARING}: {settings.sharing} gave {_shown(found)}, not a Representation, or one for each task')
  for task, name, field in heads:
    kind, dtype = multitask.head_of(settings, task), multitask.compute_dtype(settings.dtype)
    hint = 'a head reads representation.features [b, f], or .maps, and does the same in training and evaluation'
    with parts.wrap_errors(settings.backbone, field=BACKBONE), parts.wrap_errors(name, field=field, hint=hint):
      head = kind(task.num_outputs, settings.head_features, dtype)
      outputs, _ = _run(head, of_tasks[task.name])
    _require(outputs, *('h', 'w') * task.dense, task.num_outputs, who=f'{field}: {name}')
    if not is_built_in(task):
      _check_task(task, outputs)


def _check_backbone(backbone: Backbone, name: str, x: Any) -> None:
  """Applies stage after stage, each as if it were alone, so that the parameters of each are known; then pools."""
  stage_of: dict[str, int] = {}
  for index in range(backbone.num_stages):
    with parts.wrap_errors(name, field=BACKBONE):
      x, variables = _run(backbone, x, trains=True, index=index, method='stage')
    for layer in sorted({layer for collection in variables.values() for layer in collection}):
      if AUTOMATIC.fullmatch(layer) and stage_of.setdefault(layer, index) != index:
        raise ConfigError(
          f'{BACKBONE}: {name}: stages {stage_of[layer]} and {index} share the parameters of {layer}; name layers by '
          "the stage's index, as in name=f'conv{index}'"
        )
  with parts.wrap_errors(name, field=BACKBONE):
    features, _ = _run(backbone, x, method='pool')
  _require(features, 'f', who=f'{BACKBONE}: pool of {name}')


def _check_task(task: Task, outputs: Any) -> None:
  """The loss has a value a label, and predictions are of the shape that the task says."""
  field, name = 'config.plugins', source(task)
  targets = jax.ShapeDtypeStruct((ROWS, *task.label_shape), jnp.float32)
  with parts.wrap_errors(name, field=field):
    losses, predictions = jax.eval_shape(lambda x, y: (task.loss(x, y), task.predict(x)), outputs, targets)
  _require(losses, *task.label_shape, who=f'{field}: loss of {name}')
  _require(predictions, *task.prediction_shape, who=f'{field}: predict of {name}')


def _run(module: Any, x: Any, *, trains: bool = False, **options: Any) -> tuple[Any, Any]:
  """The shapes of what a module gives in evaluation, and of its variables; one that `trains` has that mode as well."""
  key, evaluation = jax.random.key(0), {'train': False} if trains else {}

  def run(x: Any) -> tuple[Any, Any]:
    variables = module.init(key, x, **options, **evaluation)
    if trains:
      training: Any = {'train': True, 'rngs': dict.fromkeys(RANDOM, key), 'mutable': ['batch_stats', 'frozen']}
      module.apply(variables, x, **options, **training)
    return module.apply(variables, x, **options, **evaluation), variables

  return jax.eval_shape(run, x)


def _require(found: Any, *axes: str | int, who: str) -> None:
  """Raises ConfigError for anything but an array of the batch's rows and these axes; text is an axis of any size."""
  shape = getattr(found, 'shape', ())
  wanted = [size if isinstance(axis, str) else axis for size, axis in zip(shape[1:], axes, strict=False)]
  if shape != (ROWS, *wanted) or len(wanted) < len(axes):
    raise ConfigError(f'{who} gave {_shown(found)}, not ({", ".join(map(str, ("b", *axes)))})')


def _shown(found: Any) -> str:
  """The shape of an array, its rows as b; or the type of anything else."""
  if not hasattr(found, 'shape'):
    return type(found).__name__
  return str(found.shape).replace(str(ROWS), 'b', found.shape[:1] == (ROWS,))
