"""MTFL's landmarks with gender, smile, glasses and head pose: 3,000 steps of 64 at 64x64, for two CPU cores.

Landmarks come from heat maps, and the wing loss weighs small errors. Their error is evaluated as
`landmarks/nme`, over the distance between the eyes, on the set's test split of AFLW faces. Prepare with
`mtl-jax prepare mtfl --crop_margin 0.9`, which frames train faces as test faces are; those of the validation split stay
half as large, so its error is higher by far. `--config.tasks=landmarks` is the single-task side.
"""

from ml_collections import ConfigDict

from mtl_jax.configs import celeba_joint


def get_config() -> ConfigDict:
  config = celeba_joint.get_config()
  config.tasks = 'landmarks,gender,smile,glasses,pose'
  config.model.heads = ConfigDict({'landmarks': 'soft_argmax'})
  config.objective.coordinate_loss = 'wing'
  config.objective.weights = ConfigDict({'landmarks': 1.0, 'gender': 0.1, 'smile': 0.1, 'glasses': 0.1, 'pose': 0.1})
  config.data.augment.shift = 0.1  # Cropped to their landmarks, faces lie more alike than test faces do.
  config.data.augment.zoom = 0.2
  config.train.steps = 3_000
  config.optimizer.learning_rate = 2e-3
  config.optimizer.ema_decay = 0.995
  config.eval.every_steps = 500
  config.eval.metric = 'landmarks/nme'
  config.checkpoint.every_steps = 500
  return config
