"""The grid of study_matching on three sets with almost disjoint labels: CelebA's, MTFL's and UTKFace's; 5 seeds.

Attributes are CelebA's, smiles MTFL's, ages UTKFace's; landmarks are in two of the sets, and so is sex. What relates
them is in faces_relations.toml. Prepare all three at 128x128 and name the weights:
--config.data.dirs=data/celeba128,data/mtfl128,data/utkface128 --config.model.weights=FILE
"""

from pathlib import Path

from ml_collections import ConfigDict

from mtl_jax.configs import study_matching


def get_config() -> ConfigDict:
  config = study_matching.get_config()
  config.data.rename = ()
  config.data.keep_labels = ''
  config.tasks = 'attributes,landmarks,smile,gender,age'
  matching = config.objective.matching
  matching.relations = (str(Path(__file__).with_name('faces_relations.toml')),)
  matching.table = 'given'
  matching.count_in = 'train'
  return config
