"""The demo's configuration: a narrow ResNet-18 on synthetic faces, a minute a model on two CPU cores."""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.model.width = 16
  config.train.steps = 200
  config.train.batch_size = 64
  config.optimizer.learning_rate = 4e-3
  config.optimizer.warmup_steps = 40
  config.optimizer.weight_decay = 0.05
  config.optimizer.ema_decay = 0.98
  config.objective.weights.landmarks = 0.15
  config.train.log_every_steps = 10
  config.eval.every_steps = 50
  config.checkpoint.every_steps = 100
  return config
