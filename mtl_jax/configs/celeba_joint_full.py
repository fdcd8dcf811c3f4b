"""The joint model on the whole of CelebA for a GPU or TPU: ResNet-18, 15 epochs of 256; prepare at 128x128."""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.train.steps = 9_540  # 15 epochs of 162,770 images.
  config.optimizer.learning_rate = 2e-3
  config.optimizer.warmup_steps = 500
  config.optimizer.weight_decay = 0.05
  config.optimizer.ema_decay = 0.999
  config.objective.weights.landmarks = 0.15
  config.eval.every_steps = 636
  config.checkpoint.every_steps = 636
  return config
