"""The network of a run as pure functions of its variables; other packages do not see the library behind them."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from jaxtyping import Array, Float, Key

from mtl_jax.models.backbone import Representation
from mtl_jax.models.frozen import FrozenStages

RANDOM = ('sharing', 'dropout')  # Streams of random numbers in training: of ways of sharing, and of a backbone.

Variables = Mapping[str, Any]  # Trees of arrays by collection: `params`, `batch_stats`, `frozen`.
Encoded = Representation | Mapping[str, Representation]  # One representation for all tasks, or one of each by name.


@dataclasses.dataclass(frozen=True)
class Network:
  """A network of two parts: images, or what frozen stages make of them, are encoded, and heads decode that.

  Parameters of the encoder lie under `shared`, those of the heads under `head_<task>`: see `split`.

  Attributes:
    module: computes; a `MultiTaskModel` or another with its methods. Nothing outside of this package reads it.
  """

  module: Any

  @property
  def frozen(self) -> FrozenStages | None:
    """The stages before the others that do not learn, if there are any."""
    return self.module.frozen

  @property
  def after_frozen(self) -> 'Network':
    """The network that reads the frozen stages' outputs instead of images; its parameters are the same."""
    return Network(self.module.clone(frozen=None))

  def init(self, key: Key[Array, ''], inputs: Float[Array, 'b ...']) -> dict[str, Any]:
    """The variables before the first step."""
    return self.module.init(key, inputs, train=False)

  def init_heads(self, key: Key[Array, ''], representation: Encoded) -> dict[str, Any]:
    """The heads' variables alone."""
    return self.module.init(key, representation, train=False, method='decode')

  def encode(
    self, variables: Variables, inputs: Float[Array, 'b ...'], *, train: bool, key: Key[Array, ''] | None = None
  ) -> tuple[Encoded, dict[str, Any]]:
    """The representation that the heads read, and the collections that training changes, as they are after it.

    Args:
      variables: of the network; no head is read.
      inputs: normalised images `[b, h, w, 3]`, or what the frozen stages made of them.
      train: batch norm takes its statistics from the batch, and its running averages move.
      key: of what a way of sharing, or a backbone's dropout, draws at random in training.
    """
    return self._apply('encode', variables, inputs, train=train, key=key, changing=('batch_stats', 'frozen'))

  def encode_frozen(self, variables: Variables, images: Float[Array, 'b h w 3']) -> Float[Array, 'b ...']:
    """The frozen stages' outputs for normalised images; `variables` are theirs, by collection."""
    return self.module.frozen.apply(variables, images, train=False)

  def decode(
    self, variables: Variables, representation: Encoded, *, train: bool, key: Key[Array, ''] | None = None
  ) -> tuple[dict[str, Float[Array, 'b ...']], dict[str, Any]]:
    """Every task's outputs from what `encode` gives, and the collections that training changes; only heads are read."""
    return self._apply('decode', variables, representation, train=train, key=key, changing=('batch_stats',))

  def outputs(self, variables: Variables, inputs: Float[Array, 'b ...']) -> dict[str, Float[Array, 'b ...']]:
    """Every task's outputs in evaluation."""
    representation, _ = self.encode(variables, inputs, train=False)
    return self.decode(variables, representation, train=False)[0]

  def penalty(self, params: Mapping[str, Any]) -> Float[Array, ''] | None:
    """The penalty on parameters that is added to the loss; None where there is none."""
    return self.module.penalty(params)

  def _apply(
    self, method: str, variables: Variables, x: Any, *, train: bool, key: Any, changing: tuple[str, ...]
  ) -> tuple[Any, dict[str, Any]]:
    apply = partial(self.module.apply, variables, x, train=train, method=method)
    if not train:
      return apply(), {}
    result, changed = apply(mutable=list(changing), rngs={} if key is None else dict.fromkeys(RANDOM, key))
    return result, dict(changed)


def split(collection: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parameters or batch statistics: those of the encoder, and those of the heads."""
  shared = {name: value for name, value in collection.items() if name == 'shared'}
  return shared, {name: value for name, value in collection.items() if name != 'shared'}
