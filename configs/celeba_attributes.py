"""CelebA's attributes alone: the single-task side of celeba_joint, everything else the same."""

from mtl_jax.configs.celeba_attributes import get_config

__all__ = ['get_config']
