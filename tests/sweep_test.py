"""A sweep searches, confirms on other seeds, draws the front, and writes what DESIGN promises."""

import json

import numpy as np
import pytest
import small_runs

import mtl_jax
from mtl_jax import cli
from mtl_jax import config as configs
from mtl_jax.config import with_fields
from mtl_jax.errors import DivergedError, UserError
from mtl_jax.run import workdir
from mtl_jax.studies import arms
from mtl_jax.studies.arms import RATE
from mtl_jax.sweeps import presets, sweep, trials
from mtl_jax.tasks import BinaryTask
from mtl_jax.training import loop

SMALL = {'train.steps': 4, 'eval.every_steps': 2, 'study.num_resamples': 100, 'sweep.confirm_seeds': 2}


@pytest.fixture
def config_of(faces):
  return lambda **fields: configs.load(
    small_runs.make_config(faces), SMALL | {f.replace('__', '.'): v for f, v in fields.items()}
  )


def spaces(**fields):
  return {f'sweep.space.{name.replace("__", ".")}': value for name, value in fields.items()}


def bits(directory):
  """Every prediction and score that is kept, by file."""
  found = {}
  for path in sorted((directory / 'trials').rglob('*.npz')):
    kept = np.load(path)
    facts = json.loads(str(kept['facts']))
    predictions = {name: kept[name].tobytes() for name in kept.files if name != 'facts'}
    found[str(path.relative_to(directory))] = predictions, facts['score'], facts['history']
  return found


def test_32_trials_of_numbers_share_one_compiled_step_and_a_sweep_that_was_killed_ends_in_the_same_bits(
  config_of, tmp_path, killed_after
):
  space = spaces(optimizer__learning_rate='log(1e-4,1e-2)', optimizer__weight_decay='range(0.01,0.3)')
  config = configs.load(
    config_of(), {**space, 'sweep.weights_of': ('attributes', 'landmarks'), 'sweep.front_points': 0}
  )
  whole = sweep.run(config, tmp_path / 'whole')
  assert whole['cost']['trials'] == {'joint': 32}
  assert whole['cost']['compiled_steps'] == 2  # One for the search, one for the confirmation, of fewer replicas.
  assert len({one['values'][RATE] for one in whole['trials']}) == 32
  with killed_after(11):
    sweep.run(config, tmp_path / 'killed')
  again = sweep.run(config, tmp_path / 'killed')
  assert bits(tmp_path / 'killed') == bits(tmp_path / 'whole')
  assert again['best']['values'] == whole['best']['values']


@pytest.fixture(scope='module')
def drawn(faces, tmp_path_factory):
  """A finished sweep with a front and two methods, by the command line."""
  folder = tmp_path_factory.mktemp('drawn')
  small_runs.command(folder, small_runs.make_config(faces, **SMALL), folder / 'run')
  fields = {
    'sweep.space.optimizer.learning_rate': '1e-3,3e-3', 'sweep.weights_of': 'attributes,landmarks',
    'sweep.weight_steps': '4', 'sweep.sampler': 'grid', 'sweep.methods': 'uncertainty,cagrad', 'sweep.best': 'gains',
  }  # fmt: skip
  flags = [f'--config.{name}={value}' for name, value in fields.items()]
  assert cli.main(['sweep', '--config', str(folder / 'config.py'), '--workdir', str(folder / 'run'), *flags]) == 0
  return folder / 'run'


def test_a_front_has_fixed_weights_and_methods_beside_single_task_models(drawn):
  found = json.loads((drawn / 'sweep.json').read_text())
  assert found['cost']['trials'] == {'joint': 6, 'attributes': 2, 'landmarks': 2, 'uncertainty': 2, 'cagrad': 2}
  kinds = [point['kind'] for point in found['front']['points']]
  assert kinds.count('method') == 2
  assert 1 <= kinds.count('weights') <= 6
  assert set(found['front']['positions']) == {'uncertainty', 'cagrad'}
  assert set(found['front']['hypervolume']) == {'fixed weights', 'methods'}
  assert [goal['metric'] for goal in found['front']['goals']] == ['macro_accuracy', 'nme']
  assert found['best']['confirmed']['seeds'] == [0, 1]
  searched = {path.name for path in (drawn / 'trials' / 'joint').iterdir() if f'seed{arms.TUNING_SEED}' in path.name}
  assert len(searched) == 6


def test_the_page_of_a_sweep_shows_its_front_and_files_of_it_lie_beside(drawn):
  page = mtl_jax.report(drawn).read_text()
  assert page.count('class="says"') >= 4
  assert 'uncertainty: attributes' in page
  assert page.count('; the same as best') == 1  # What gains most lies on the front.
  assert not any(text in page for text in ('http://', 'https://'))
  for kind in ('png', 'svg'):
    assert (drawn / 'plots' / f'front-attributes-landmarks.{kind}').stat().st_size > 1000
  assert len((drawn / 'sweep.csv').read_text().splitlines()) == 15


def test_the_best_is_a_configuration_that_trains_to_what_was_confirmed(drawn, tmp_path):
  config = configs.load(drawn / 'best.py')
  values = json.loads((drawn / 'sweep.json').read_text())['best']['values']
  assert config.optimizer.learning_rate == values[RATE]
  assert config.objective.weights.landmarks == values['objective.weights.landmarks']
  assert config.train.steps == 4
  loop.train(config, tmp_path / 'run')


def test_a_pruned_and_a_diverged_trial_are_rows_and_no_end(config_of, tmp_path):
  pytest.importorskip('optuna')
  fields = spaces(optimizer__learning_rate='1e-2,3e-2,1e-7,1e30')
  more = {'sweep.sampler': 'grid', 'sweep.batch': 2, 'sweep.pruner': 'median', 'eval.every_steps': 1}
  found = sweep.run(configs.load(config_of(), {**fields, **more}), tmp_path)
  by_rate = {one['values'][RATE]: one for one in found['trials']}
  assert by_rate[1e-7]['pruned_at'] == 1
  assert by_rate[1e30]['diverged_at']
  assert by_rate[1e30]['score'] is by_rate[1e-7]['score'] is None
  assert found['best']['values'][RATE] in (1e-2, 3e-2)
  assert 'given up at step 1' in mtl_jax.report(tmp_path).read_text()


def test_batch_sizes_to_the_knee_see_as_many_images(config_of, tmp_path):
  config = presets.applied(config_of(sweep__preset='batch_size', train__batch_size=16, train__steps=8))
  config = configs.load(config, spaces(train__batch_size='32'))
  found = sweep.run(with_fields(config, sweep__preset='none'), tmp_path)
  assert {one['values']['train.batch_size']: one['values']['train.steps'] for one in found['trials']} == {32: 4}
  assert all(one['goals']['speed'] > 0 for one in found['trials'])


@pytest.mark.parametrize(('preset', 'num'), [('learning_rate', 25), ('batch_size', 5)])
def test_presets_are_fields_of_a_sweep(preset, num, config_of):
  found = presets.applied(config_of(sweep__preset=preset, train__batch_size=16))
  assert len(trials.space_of(found).grid()) == num
  assert presets.applied(found) == found


RATES = spaces(optimizer__learning_rate='1e-3,1e-2')


@pytest.mark.parametrize(
  ('fields', 'named'),
  [
    ({}, r'config\.sweep\.space is empty'),
    ({'sweep.weights_of': ('landmarks',)}, r'config\.sweep\.weights_of'),
    ({'sweep.weights_of': ('landmarks', 'attributes'), 'tasks': 'landmarks'}, r'config\.sweep\.weights_of'),
    ({'sweep.weights_of': ('landmarks', 'landmarks')}, r'config\.sweep\.weights_of: landmarks stands twice'),
    ({'sweep.weights_of': ('landmarks', 'smile')}, r'config\.sweep\.weights_of.*choose from attributes, landmarks$'),
    (spaces(objective__weights__smile='0.5,1'), r'config\.sweep\.space\.objective\.weights: no choice .smile'),
    (
      {**spaces(objective__weights__landmarks='1,2'), 'sweep.weights_of': ('attributes', 'landmarks')},
      r'config\.sweep\.space\.objective\.weights\.landmarks.*weights_of',
    ),
    ({'sweep.weights_of': ('attributes', 'landmarks'), 'objective.name': 'famo'}, r'config\.objective\.name.*fixed'),
    (spaces(objective__options__c='0.1,0.5'), r'config\.sweep\.space\.objective\.options\.c changes nothing'),
    (spaces(model__backbone='convnet,foo'), r'config\.sweep\.space\.model\.backbone: no choice .foo'),
    ({**RATES, 'sweep.best': 'gains', 'tasks': 'landmarks'}, r'config\.tasks'),
    ({**RATES, 'sweep.best': 'gains', 'sweep.gains.smile': 1}, r'config\.sweep\.gains: no choice .smile'),
    ({**RATES, 'sweep.best': 'gains', 'sweep.gains.attributes': 0, 'sweep.gains.landmarks': 0}, r'sweep\.gains is 0'),
    ({**RATES, 'sweep.gains.attributes': 2}, r'config\.sweep\.gains'),
    ({**RATES, 'sweep.best': 'gains', 'sweep.goals': ('score', 'speed')}, r'config\.sweep\.goals'),
    ({**RATES, 'sweep.pruner': 'median', 'eval.every_steps': 0}, r'config\.sweep\.pruner'),
    ({**RATES, 'sweep.methods': ('famoo',)}, r'config\.sweep\.methods.*famo'),
    ({**RATES, 'sweep.methods': ('famo', 'famo')}, r'config\.sweep\.methods: famo stands twice'),
    ({**RATES, 'sweep.methods': ('fixed',)}, r'config\.sweep\.methods: fixed'),
    ({**RATES, 'sweep.methods': ('famo',), 'sweep.front_points': 0}, r'config\.sweep\.methods.*front_points'),
    ({**RATES, 'sweep.preset': 'learning_rate'}, r'config\.sweep\.preset.*space\.optimizer\.learning_rate'),
    ({**RATES, 'eval.patience': 3}, r'config\.eval\.patience'),
    ({**spaces(optimizer__learning_rate='log(1e-3,1e-2)'), 'sweep.sampler': 'grid'}, r'sweep\.space\.optimizer'),
    ({**RATES, 'sweep.metric': 'attributes/nme'}, r'config\.sweep\.metric: attributes: no choice .nme'),
    ({**RATES, 'sweep.goals': ('score', 'foo')}, r'config\.sweep\.goals: no choice .foo.*score, speed'),
  ],
)
def test_what_a_sweep_cannot_do_names_the_field_before_the_first_step(fields, named, config_of, tmp_path):
  with pytest.raises(UserError, match=named):
    sweep.run(configs.load(config_of(), fields), tmp_path)
  assert not (tmp_path / 'trials').exists()


def test_a_weight_of_a_task_that_the_data_lack_is_warned_of(config_of, said):
  workdir.opened(config_of(objective__weights__smile=2, objective__weights__landmarks=2))
  assert ['smile' in line for line in said if 'objective.weights' in line] == [True]


def test_options_of_a_method_are_searched_for_it_alone(config_of):
  fields = {**RATES, **spaces(objective__options__c='0.1,0.5'), 'sweep.methods': ('cagrad',)}
  config = configs.load(config_of(), fields)
  tasks = [BinaryTask('attributes', ('a', 'b')), BinaryTask('landmarks', ('c',))]
  found = trials.spaces_of(config, sweep.programs_of(config, tasks), tasks)
  searched = {name: [axis.field for axis in one.axes] for name, one in found.items()}
  assert searched == {name: [RATE] for name in ('joint', 'attributes', 'landmarks')} | {
    'cagrad': ['objective.options.c', RATE]
  }


def test_a_sweep_goes_on_in_a_wider_space_and_with_damaged_files(config_of, tmp_path):
  own = {'sweep.sampler': 'grid', 'sweep.confirm_seeds': 1}
  sweep.run(configs.load(config_of(), {**RATES, **own}), tmp_path)
  first, second = sorted((tmp_path / 'trials' / 'joint').glob(f'lr*seed{arms.TUNING_SEED}.npz'))
  kept, whole = first.stat().st_mtime_ns, bits(tmp_path)
  second.write_bytes(second.read_bytes()[:100])
  wider = spaces(optimizer__learning_rate='1e-3,1e-2,1e-4')
  assert len(sweep.run(configs.load(config_of(), {**wider, **own}), tmp_path)['trials']) == 3
  assert first.stat().st_mtime_ns == kept
  assert whole.items() <= bits(tmp_path).items()


def test_a_search_that_diverged_throughout_says_so(config_of, tmp_path):
  with pytest.raises(DivergedError, match=r'every trial of joint diverged'):
    sweep.run(configs.load(config_of(), spaces(optimizer__learning_rate='1e30,1e31')), tmp_path)
