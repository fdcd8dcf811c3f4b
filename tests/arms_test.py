"""What a study's config says is compared: arms of programs, and variants of the joint model."""

import pytest

from mtl_jax.config import with_fields
from mtl_jax.configs import default
from mtl_jax.errors import ConfigError
from mtl_jax.studies import arms, program
from mtl_jax.tasks import BinaryTask, LandmarkTask

TASKS = (BinaryTask('attributes', ('Smiling',)), LandmarkTask('landmarks', ('nose_x', 'nose_y')))


def config_of(**study):
  return with_fields(default.get_config(), **{f'study__{name}': value for name, value in study.items()})


def with_variants(**variants):
  config = config_of(arms=('single', 'joint', *variants))
  with config.unlocked():
    config.study.variants.update(variants)
  return config


def test_single_has_a_program_for_each_task_and_joint_one_for_all():
  found = arms.from_config(config_of(), TASKS)
  assert {name: {one: program.tasks for one, program in arm.programs.items()} for name, arm in found.items()} == {
    'single': {'attributes': 'attributes', 'landmarks': 'landmarks'},
    'joint': {'joint': 'attributes,landmarks'},
  }


def test_a_variant_is_the_joint_model_with_its_fields_set():
  found = arms.from_config(with_variants(dwa='objective.name=dwa objective.options.temperature=1.5'), TASKS)
  joint, dwa = found['joint'].programs['joint'], found['dwa'].programs['dwa']
  assert (joint.objective.name, dwa.objective.name, dwa.objective.options.temperature) == ('fixed', 'dwa', 1.5)
  assert dwa.model == joint.model
  assert dwa.data == joint.data


def test_a_variant_of_several_networks_has_a_program_for_each_group_of_tasks():
  two = arms.from_config(with_variants(two='tasks=landmarks tasks=attributes train.steps=7'), TASKS)['two']
  assert [program.tasks for program in two.programs.values()] == ['landmarks', 'attributes']
  assert {program.train.steps for program in two.programs.values()} == {7}


@pytest.mark.parametrize(
  ('variants', 'message'),
  [
    ({'dwa': 'objective.nam=dwa'}, "no field 'nam'; did you mean 'name'"),
    ({'long': 'train.steps=0'}, 'config.train.steps must be'),
    ({'other': 'train.seed=3'}, 'config.study.variants.other: train.seed=3 must be the same for all arms'),
    ({'other': '--config.train.seed=3'}, 'config.study.variants.other: train.seed=3 must be the same for all arms'),
    ({'other': 'data.dir=x'}, 'config.study.variants.other: data.dir=x must be the same for all arms'),
    ({'two': 'tasks=attributes'}, 'config.study.variants.two: no network learns landmarks'),
    ({'two': 'tasks=attributes tasks=landmarks,attributes'}, 'config.study.variants.two: attributes stands twice'),
    ({'two': 'tasks=attributes tasks=landmark'}, "config.study.variants.two: tasks.*'landmarks'"),
    (
      {'two': 'tasks=attributes tasks=landmarks', 'two_1': 'objective.name=dwa'},
      'config.study.variants.two: an arm or a task has this name already',
    ),
    ({'single': 'tasks=attributes tasks=landmarks'}, 'config.study.variants.single: an arm or a task has this name'),
    ({'landmarks': 'objective.name=dwa'}, 'config.study.variants.landmarks: an arm or a task has this name already'),
  ],
)
def test_a_variant_that_cannot_be_names_itself_or_its_field(variants, message):
  config = with_variants(**variants)
  for named in (config.study.arms, ('single', 'joint')):  # One that is not compared is looked at, too.
    with pytest.raises(ConfigError, match=message):
      arms.from_config(with_fields(config, study__arms=named), TASKS)


@pytest.mark.parametrize('names', [(), ('single',), ('joint', 'joint')])
def test_fewer_than_two_arms_are_refused(names):
  with pytest.raises(ConfigError, match=r'config\.study\.arms must name at least two'):
    arms.from_config(config_of(arms=names), TASKS)


def test_seeds_of_arms_and_of_tuning_never_meet_and_must_fit_into_32_bits():
  config = with_fields(config_of(num_seeds=100_000), train__seed=400_000)
  again = arms.ARMS['joint_again'](config, TASKS)
  tested = range(400_000, 500_000)
  repeated = range(400_000 + again.first_seed, 500_000 + again.first_seed)
  assert not {*tested, *repeated} & set(arms.tuning_seeds(config, 1000))
  assert not set(tested) & set(repeated)
  with pytest.raises(ConfigError, match=r'config\.train\.seed must be at most'):
    arms.from_config(with_fields(config, train__seed=2**31 - 1), TASKS)


def test_a_study_of_one_task_does_not_compare_its_model_with_itself():
  with pytest.raises(ConfigError, match=r'config\.tasks: .*single and joint'):
    arms.from_config(config_of(), TASKS[:1])
  assert set(arms.from_config(config_of(arms=('joint', 'joint_again')), TASKS[:1])) == {'joint', 'joint_again'}


def test_an_arm_that_is_neither_known_nor_a_variant_gets_the_nearest_name():
  with pytest.raises(ConfigError, match="no choice 'jiont'; did you mean 'joint'"):
    arms.from_config(config_of(arms=('single', 'jiont')), TASKS)


@pytest.mark.parametrize(
  ('fields', 'same'),
  [
    ({'objective__name': 'dwa'}, True),
    ({'objective__weights__landmarks': 3.0, 'optimizer__name': 'sgd', 'train__steps': 3}, True),
    ({'train__seed': 3}, False),
    ({'objective__standardize': False}, False),
    ({'data__keep_labels': 'disjoint'}, False),
    ({'model__trunk_features': (8,)}, False),
    ({'tasks': 'landmarks'}, False),
  ],
)
def test_programs_share_an_input_only_where_they_differ_in_how_they_learn(fields, same):
  config = config_of()
  assert program.reads_alike(config, with_fields(config, **fields)) is same
