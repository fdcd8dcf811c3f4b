"""The grid of study_matching on synthetic faces, whose expressions and action units have a known relation; few labels.

A tenth of the rows has an expression, another tenth action units, none both, the rest neither:
mtl-jax prepare synthetic:expressions --out data/expressions --num 6000 --image_size 128 128
"""

from ml_collections import ConfigDict

from mtl_jax.configs import study_matching


def get_config() -> ConfigDict:
  config = study_matching.get_config()
  config.data.rename = ()
  config.tasks = 'expression,action_units'
  config.data.keep_labels = 'disjoint:expression=1,action_units=1,none=8'
  matching = config.objective.matching
  matching.relations = ('expressions',)
  matching.table = 'given'
  matching.count_in = 'train'
  matching.clip = 0.03  # The table holds 0 where some draw the unit all the same.
  return config
