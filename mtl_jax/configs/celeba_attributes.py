"""CelebA's attributes alone: the single-task side of celeba_joint, everything else the same."""

from ml_collections import ConfigDict

from mtl_jax.configs import celeba_joint


def get_config() -> ConfigDict:
  config = celeba_joint.get_config()
  config.tasks = 'attributes'
  return config
