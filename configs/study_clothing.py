"""Does coupling help in the distribution-matching paper's own setting? Category and attributes of clothes; 10 seeds."""

from mtl_jax.configs.study_clothing import get_config

__all__ = ['get_config']
