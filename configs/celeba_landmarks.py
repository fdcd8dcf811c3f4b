"""CelebA's landmarks alone: the single-task side of celeba_joint, everything else the same."""

from mtl_jax.configs.celeba_landmarks import get_config

__all__ = ['get_config']
