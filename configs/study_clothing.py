"""Does coupling help on the distribution-matching paper's own ground? Category and attributes of clothes."""

from mtl_jax.configs.study_clothing import get_config

__all__ = ['get_config']
