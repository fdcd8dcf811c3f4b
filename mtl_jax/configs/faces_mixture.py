"""CelebA, MTFL and UTKFace at once, each batch holding rows of all three: 600 steps of 96 at 64x64, for two CPU cores.

The prepared sets are named on the command line: --config.data.dirs=data/celeba64,data/mtfl64,data/utkface64
"""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.tasks = 'attributes,landmarks,pose,age,race'
  # What MTFL and UTKFace call tasks of their own are attributes of CelebA; landmarks have the same names already.
  config.data.rename = (
    'smile/Smiling=attributes/Smiling',
    'glasses/Eyeglasses=attributes/Eyeglasses',
    'gender/Male=attributes/Male',
  )
  config.model.width = 32
  config.train.steps = 600
  config.train.batch_size = 96
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.05
  config.optimizer.ema_decay = 0.98
  # As in celeba_joint; the further tasks have one label a row, and not on every row, so they weigh less as well.
  for task in ('landmarks', 'pose', 'age', 'race'):
    config.objective.weights[task] = 0.15
  config.eval.every_steps = 200
  config.checkpoint.every_steps = 200
  return config
