"""The grid of study_matching on synthetic faces, whose expressions and action units have a known relation."""

from mtl_jax.configs.study_expressions import get_config

__all__ = ['get_config']
