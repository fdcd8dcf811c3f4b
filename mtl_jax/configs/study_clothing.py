"""Does coupling help in the distribution-matching paper's own setting? Category and attributes of clothes; 10 seeds.

Strengths of couplings and learning rates are chosen on validation alike. docs/matching.md has other shares of labels.
Prepare the data with `--image_size 224 224 --fit pad` and name the weights: --config.data.dir=data/clothing
--config.model.weights=FILE
"""

from ml_collections import ConfigDict

from mtl_jax.configs import study_celeba
from mtl_jax.configs.study_matching import COUPLED


def get_config() -> ConfigDict:
  config = study_celeba.get_config()
  config.tasks = 'category,attributes'
  config.model.trunk_features = (256, 128)  # What is shared, and learns.
  config.train.steps = 300
  config.optimizer.warmup_steps = 30
  config.eval.every_steps = 25
  config.objective.matching.relations = ('clothing',)
  config.study.variants = COUPLED
  config.study.arms = ('single', 'joint', 'matching', 'soft_co_annotation', 'co_annotation', 'both')
  config.study.num_tuning_seeds = 3
  config.study.learning_rates = (1e-3, 3e-3, 1e-2, 3e-2)
  return config
