"""Which way of weighing losses or balancing gradients serves joint training best? Each is an arm of one study."""

from mtl_jax.configs.study_methods import get_config

__all__ = ['get_config']
