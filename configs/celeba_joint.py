"""CelebA's 40 attributes and 5 landmarks jointly, sized for two CPU cores: 600 steps of 64 at 64x64."""

from mtl_jax.configs.celeba_joint import get_config

__all__ = ['get_config']
