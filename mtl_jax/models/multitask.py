"""The multi-task model, from images to `{task: outputs}`: a backbone, a way of sharing it, and heads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.errors import ConfigError
from mtl_jax.models import convnet, convnext, mobilenet, resnet, vit
from mtl_jax.models.backbone import Backbone, Representation
from mtl_jax.models.frozen import FrozenStages, cut
from mtl_jax.models.heads import HEADS, Head, Mlp
from mtl_jax.models.network import Network
from mtl_jax.models.sharing import SHARING, check_options
from mtl_jax.models.sharing.way import Sharing, name_of
from mtl_jax.tasks import Task

BACKBONES: dict[str, Callable[..., Backbone]] = {
  'resnet18': resnet.resnet18,
  'resnet34': resnet.resnet34,
  'resnet50': resnet.resnet50,
  'mobilenet_v2': mobilenet.MobileNetV2,
  'convnext_tiny': convnext.convnext_tiny,
  'vit_s16': vit.vit_s16,
  'vit_b16': vit.vit_b16,
  'convnet': convnet.ConvNet,
  'celeba_cnn': convnet.CelebACNN,
}
# Fields of `config.model` that a backbone takes if it has them, and the values that leave the choice to it.
BACKBONE_FIELDS = {'width': 0, 'stem': 'auto', 'norm': 'auto', 'norm_rows': 0, 'remat': False}


class MultiTaskModel(nn.Module):
  """A shared part and a head for each task; a single-task model has one head.

  Parameters are `shared` and `head_<task>` for each task; what is frozen lies in the collection `frozen` instead.

  Attributes:
    shared: a `Sharing`, or another module with its methods: images `[b, h, w, 3]`, or what the frozen stages make of
      them, to what the heads read.
    outputs: the name and number of outputs of each task.
    head_features: width of each head's hidden layer.
    head_kinds: each task's head by the task's name; `Mlp` where none is named.
    dtype: type of the computation; parameters are float32.
    frozen: the stages before `shared` that do not learn.
  """

  shared: Any
  outputs: Sequence[tuple[str, int]]
  head_features: int = 256
  head_kinds: Mapping[str, type[Head]] = FrozenDict()
  dtype: Any = jnp.float32
  frozen: FrozenStages | None = None

  def encode(self, images: Float[Array, 'b ...'], *, train: bool) -> Representation | Mapping[str, Representation]:
    """Encodes images to the input of the heads: one representation for all tasks, or one for each by name."""
    return self.shared(self.frozen(images, train=train) if self.frozen else images, train=train)

  @nn.compact
  def decode(
    self, representation: Representation | Mapping[str, Representation], *, train: bool
  ) -> dict[str, Float[Array, 'b ...']]:
    """Every task's outputs."""
    del train
    return {
      name: self.head_kinds.get(name, Mlp)(num_outputs, self.head_features, self.dtype, name=name_of('head', name))(
        representation if isinstance(representation, Representation) else representation[name]
      )
      for name, num_outputs in self.outputs
    }

  def __call__(self, images: Float[Array, 'b ...'], *, train: bool) -> dict[str, Float[Array, 'b ...']]:
    return self.decode(self.encode(images, train=train), train=train)

  def penalty(self, params: Mapping[str, Any]) -> Float[Array, ''] | None:
    """The penalty that the way of sharing adds to the loss for its prior on parameters; None if it has none."""
    return self.shared.penalty(params)


def from_config(settings: ConfigDict, tasks: Sequence[Task]) -> Network:
  """The network that `config.model` asks for, with a head for each task."""
  sharing = way_of_sharing(settings)
  dtype = compute_dtype(settings.dtype)
  heads = {task.name: head_of(settings, task) for task in tasks}
  spatial = any(head.spatial or head.dense for head in heads.values())
  frozen_stages, backbone = cut(backbone_maker(settings), settings, spatial=spatial)
  shared = sharing(
    backbone=backbone,
    tasks=tuple(task.name for task in tasks),
    spatial=spatial,
    **check_options(sharing, settings.sharing_options, name=settings.sharing),
  )
  module = MultiTaskModel(
    shared=shared,
    outputs=tuple((task.name, task.num_outputs) for task in tasks),
    head_features=settings.head_features,
    head_kinds=FrozenDict(heads),
    dtype=dtype,
    frozen=frozen_stages,
  )
  return Network(module)


def way_of_sharing(settings: ConfigDict) -> type[Sharing]:
  """The class of `config.model.sharing`."""
  return parts.find(settings.sharing, SHARING, field='config.model.sharing', base=Sharing)


def head_of(settings: ConfigDict, task: Task) -> type[Head]:
  """A task's head: its own, or its group's, or that of all; a dense task has a decoder where none is named for it.

  Raises:
    ConfigError: for an unknown head, or one that gives coordinates where the task has none.
  """
  kind, field = head_name(settings, task)
  head = parts.find(kind, HEADS, field=field, base=Head)
  if head.dense != task.dense:
    gives = 'a map' if head.dense else 'no map'
    raise ConfigError(f'{field}: {kind} gives {gives}, but {task.name} is of kind {task.kind}')
  if head.spatial and not task.coordinates:
    raise ConfigError(
      f'{field}: {kind} gives coordinates, and {task.name} has none; '
      f'name a task of landmarks, as with --config.model.heads.landmarks={kind}'
    )
  return head


def head_name(settings: ConfigDict, task: Task) -> tuple[str, str]:
  """The name of a task's head, and the field that has it."""
  own = next((name for name in (task.name, task.group) if name in settings.heads), None)
  if own:
    return settings.heads[own], f'config.model.heads.{own}'
  return 'decoder' if task.dense else settings.head, 'config.model.head'


def backbone_from_config(settings: ConfigDict) -> Backbone:
  """The backbone alone."""
  return backbone_maker(settings)()


def backbone_maker(settings: ConfigDict) -> partial[Backbone]:
  """Makes the backbone, a new one at each call.

  Raises:
    ConfigError: for an option that this backbone does not have.
  """
  name, field = settings.backbone, 'config.model.backbone'
  make = parts.find(name, BACKBONES, field=field)
  with parts.wrap_errors(name, field=field):
    plain = make()
  if not isinstance(plain, Backbone):
    raise ConfigError(f'{field}: {name} gave {type(plain).__name__}, not a Backbone; wrap it: docs/own_parts.md')
  if not isinstance(getattr(plain, 'num_stages', None), int):
    raise ConfigError(f'{field}: {name} has no num_stages, the number of its stages')
  known = {field.name for field in dataclasses.fields(plain)}  # pyright: ignore[reportArgumentType]
  options = {}
  for option, untouched in BACKBONE_FIELDS.items():
    value = settings[option]
    if value == untouched:
      continue
    if option not in known:
      raise ConfigError(f'config.model.{option}: {name} has no such option; leave it at {untouched!r}')
    options[option] = value
  if is_weights_file(settings.weights) and 'stem' in known:
    options.setdefault('stem', 'imagenet')  # Weights are of the published network, whatever the image size.
  if settings.norm_rows and options.get('norm', plain.norm) != 'batch':
    raise ConfigError('config.model.norm_rows: only batch norm has statistics over rows; leave it at 0')
  made = partial(make, **options, dtype=compute_dtype(settings.dtype))
  with parts.wrap_errors(name, field=field):
    made()
  return made


def is_weights_file(weights: str) -> bool:
  """True where `config.model.weights` names a file of pretrained weights; else it names another run, or nothing."""
  return weights.endswith(('.pth', '.pt', '.safetensors'))


def compute_dtype(name: str) -> Any:
  """The type a config names; `auto` is bfloat16 where the hardware is fast at it."""
  if name == 'auto':
    return jnp.float32 if jax.default_backend() == 'cpu' else jnp.bfloat16
  return {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}[name]
