"""Does coupling help on the distribution-matching paper's own ground? Category and attributes of clothes; 10 seeds.

Strengths of couplings and learning rates are chosen on validation alike. docs/matching.md has other shares of labels.
Prepare the data with `--image_size 224 224 --fit pad` and name the weights: --config.data.dir=data/clothing
--config.model.weights=FILE
"""

from ml_collections import ConfigDict

from mtl_jax.configs import default


def get_config() -> ConfigDict:
  config = default.get_config()
  config.tasks = 'category,attributes'
  config.data.augment = dict.fromkeys(config.data.augment, 0.0) | {'flip': False}  # Features are computed once.
  config.model.backbone = 'mobilenet_v2'
  config.model.freeze = 'backbone'
  config.model.trunk_features = (256, 128)  # What is shared, and learns.
  config.train.steps = 300
  config.train.batch_size = 128
  config.train.log_every_steps = 50
  config.optimizer.weight_decay = 0.05
  config.optimizer.warmup_steps = 30
  config.optimizer.ema_decay = 0.98
  config.eval.every_steps = 25
  config.objective.matching.relations = ('clothing',)
  coupled = {
    'matching': 'objective.matching.distribution=1',
    'soft_co_annotation': 'objective.matching.soft_co_annotation=0.3',
    'co_annotation': 'objective.matching.co_annotation=0.5',
    'both': 'objective.matching.distribution=1 objective.matching.soft_co_annotation=0.3',
  }
  config.study.variants = coupled
  config.study.arms = ('single', 'joint', *coupled)
  config.study.num_seeds = 10
  config.study.num_tuning_seeds = 3
  config.study.learning_rates = (1e-3, 3e-3, 1e-2, 3e-2)
  return config
