"""The joint model on the whole of CelebA for a GPU or TPU: ResNet-18, 15 epochs of 256; prepare at 128x128."""

from mtl_jax.configs.celeba_joint_full import get_config

__all__ = ['get_config']
