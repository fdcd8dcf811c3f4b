"""CelebA's landmarks alone: the single-task side of celeba_joint, everything else the same."""

import celeba_joint
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  config = celeba_joint.get_config()
  config.tasks = 'landmarks'
  return config
