"""MTFL's landmarks with gender, smile, glasses and head pose: 3,000 steps of 64 at 64x64, for two CPU cores."""

from mtl_jax.configs.mtfl_joint import get_config

__all__ = ['get_config']
