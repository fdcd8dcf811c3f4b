"""CelebA's 40 attributes and 5 landmarks jointly, sized for two CPU cores: 600 steps of 64 at 64x64."""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.model.width = 32
  config.train.steps = 600
  config.train.batch_size = 64
  config.optimizer.learning_rate = 3e-3
  config.optimizer.warmup_steps = 100
  config.optimizer.weight_decay = 0.05
  config.optimizer.ema_decay = 0.98
  # Landmarks are learned in few steps; with a greater weight attributes lose more than landmarks gain.
  config.objective.weights.landmarks = 0.15
  config.eval.every_steps = 200
  config.checkpoint.every_steps = 200
  return config
