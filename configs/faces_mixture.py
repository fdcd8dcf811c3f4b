"""CelebA, MTFL and UTKFace at once, each batch holding rows of all three: 600 steps of 96 at 64x64."""

from mtl_jax.configs.faces_mixture import get_config

__all__ = ['get_config']
