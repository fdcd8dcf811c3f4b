"""Do tasks help each other where no image has the labels of two? Coupled and uncoupled joint models on CelebA."""

from mtl_jax.configs.study_matching import get_config

__all__ = ['get_config']
