"""The grid of study_matching on three sets with almost disjoint labels: CelebA's, MTFL's and UTKFace's; 5 seeds."""

from mtl_jax.configs.study_mixture import get_config

__all__ = ['get_config']
