"""Loads the weights that a run starts from: a file of pretrained ones, or those of another run."""

import logging
import re
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mtl_jax.config import parts
from mtl_jax.models import multitask, own_weights, pretrained
from mtl_jax.platform import address
from mtl_jax.run import trained_model

log = logging.getLogger('mtl_jax')


def load(model: ConfigDict, image_size: tuple[int, int]) -> dict[str, Any] | None:
  """Loads what `weights` of a config's `model` names, for `init_state`; None where it names nothing.

  A resumed run has them.

  Returns:
    Arrays by the names of `own_weights.flatten`: of another run, of one that was exported, or of a backbone alone.

  Raises:
    UserError: for a file or a run that cannot be read, or is of another architecture.
  """
  place = model.weights
  if not place:
    return None
  path = Path(place) if multitask.is_weights_file(place) else Path(place) / own_weights.FILE
  if multitask.is_weights_file(place) or (not address.is_address(place) and path.is_file()):
    if own := own_weights.read(path):
      return own
    backbone = multitask.backbone_from_config(model)
    return own_weights.of_backbone(pretrained.load(path, backbone, image_size=image_size))
  found = re.fullmatch(r'(.*?)(?:@(\d+))?', place)
  assert found is not None  # Both parts may be missing.
  trained = trained_model.restore(address.workdir(found[1]), step=int(found[2]) if found[2] else None)
  log.info('weights: step %d of %s', trained.step, found[1])
  theirs, ours = (parts.title(one.backbone) for one in (trained.config.model, model))
  if theirs != ours:
    told = 'warning: config.model.weights: %s is of the backbone %s, not %s: only layers of equal names and shapes fit'
    log.warning(told, found[1], theirs, ours)
  return jax.device_get(own_weights.flatten(trained.variables))
