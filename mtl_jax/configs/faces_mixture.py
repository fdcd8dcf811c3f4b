"""CelebA, MTFL and UTKFace at once, each batch holding rows of all three: 600 steps of 96 at 64x64, for two CPU cores.

The prepared sets are named on the command line: --config.data.dirs=data/celeba64,data/mtfl64,data/utkface64
"""

from ml_collections import ConfigDict

from mtl_jax.configs import celeba_joint


def get_config() -> ConfigDict:
  config = celeba_joint.get_config()
  config.tasks = 'attributes,landmarks,pose,age,race'
  # What MTFL and UTKFace call tasks of their own are attributes of CelebA; landmarks have the same names already.
  config.data.rename = (
    'smile/Smiling=attributes/Smiling',
    'glasses/Eyeglasses=attributes/Eyeglasses',
    'gender/Male=attributes/Male',
  )
  config.train.batch_size = 96
  # The further tasks have one label a row, and not on every row, so they weigh less, as landmarks do.
  for task in ('pose', 'age', 'race'):
    config.objective.weights[task] = 0.15
  return config
