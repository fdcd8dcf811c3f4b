"""The study's page: the verdict first, then the figures, the curves and what it all was made of. It needs nothing else.

Written from `study.json` and the replicas on the shelf; the plots also lie beside it as PNG and SVG.
"""

import collections
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl_jax.platform import address, atomic_write
from mtl_jax.report import charts, template
from mtl_jax.report.runs import read_json
from mtl_jax.report.scoreboard import MISSING
from mtl_jax.study import arms, overview, plots, provenance, record, words
from mtl_jax.study.pictures import worst
from mtl_jax.study.record import Record
from mtl_jax.study.words import Finding

KEYS = ('arms', 'tasks', 'seeds', 'power', 'learning_rates')  # Of a file that is whole.
MAX_OPEN_PANELS = 8  # More curves than these are folded away.
MAX_OPEN_ARMS = 5  # With more arms than these, what is said of each is folded away.
MAX_OPEN_ROWS = 12  # Likewise of tables that are no one's first question.


def is_study(directory: Path) -> bool:
  """Whether a working directory holds a study, finished or not."""
  return (directory / 'study.json').is_file() or (directory / 'replicas').is_dir()


def write_report(directory: Path, *, pictures: bool = False) -> None:
  """Writes `report.html`, and the plots into `plots/`, from the files of a finished study.

  Args:
    directory: its working directory.
    pictures: whether to show the test images with the greatest errors. They may be photos of real people, so they
      are shown only when asked for.

  Raises:
    UserError: for a file that is missing or damaged.
  """
  study = read_json(directory / 'study.json', make=f'mtl-jax study --config F.py --workdir {directory}', keys=KEYS)
  kept = record.read(directory, study)
  values = page_values(study, kept, plots=directory / 'plots')
  faces = worst(directory, kept, arms=study['arms']) if pictures else []
  page = template.render('study.html', title=address.name(directory), faces=faces, **values)
  atomic_write.write(directory / 'report.html', page)


def page_values(study: Mapping[str, Any], kept: Record, *, plots: Path) -> dict[str, Any]:
  """What the template wants, but for the title and the pictures; draws the plots into a folder on the way."""
  reference, *compared = study['arms']
  return {
    'study': study,
    'sides': _sides(study),
    'reference': reference,
    'sections': [_section(study, arm, plots) for arm in compared],
    'overview': _overview(study),
    'notes': _notes(study, kept),
    'intervals': _intervals(study, plots),
    'curves': _curves(study, kept, plots),
    'max_open_panels': MAX_OPEN_PANELS,
    'max_open_arms': MAX_OPEN_ARMS,
    'max_open_rows': MAX_OPEN_ROWS,
    'cost': provenance.cost(study, kept),
    'rates': provenance.rates(study, kept),
    'fields': provenance.fields(kept),
    'config': json.dumps(kept.config.to_dict(), indent=2, sort_keys=True, default=str),
    'facts': provenance.facts(study),
    'words': words,
    'missing': MISSING,
  }


def _sides(study: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Each arm's name, what it is, and how charts draw it. The reference comes first."""
  return [
    {
      'name': arm,
      'what': (getattr(arms.ARMS.get(arm), '__doc__', None) or '').split('\n')[0],
      'colour': f'var(--run-{number % len(charts.RUN_COLOURS) + 1})',
      'dashes': charts.SVG_DASHES[number % len(charts.SVG_DASHES)],
    }
    for number, arm in enumerate(study['arms'])
  ]


def _numbers(study: Mapping[str, Any]) -> dict[str, int]:
  return {arm: number for number, arm in enumerate(study['arms'])}


def _section(study: Mapping[str, Any], arm: str, folder: Path) -> dict[str, Any]:
  """Everything that one arm was found to do."""
  found = words.findings(study, arm)
  compared = words.comparison(study, arm)
  groups = words.outputs(study, arm)
  return {
    'arm': arm,
    'number': _numbers(study)[arm],
    'sentence': words.sentence(found, arm=arm, reference=study['arms'][0], num_seeds=len(study['seeds'])),
    'findings': found,
    'alone': _alone(found),
    'groups': _group_counts(found),
    'descriptive': words.descriptive(study, arm),
    'doubts': {
      doubt: [f.name for f in found if f.disagreement == doubt]
      for doubt in {f.disagreement: None for f in found}
      if doubt
    },
    'outputs': [_output_table(study, arm, group, those, folder) for group, those in groups.items()],
    'delta_m': compared['delta_m'],
    'delta_m_rows': _delta_m_rows(compared['delta_m']),
    'negative_transfer': compared['negative_transfer'],
    'power': compared['power'],
  }


def _alone(found: Sequence[Finding]) -> list[Finding]:
  """Without the tasks that a task was split into: these have a table of their own."""
  return [f for f in found if f.name.partition('/')[0] not in _group_counts(found)]


def _group_counts(found: Sequence[Finding]) -> dict[str, dict[str, int]]:
  """How many tasks of each group that was split have which verdict."""
  verdicts = collections.defaultdict(list)
  for finding in found:
    group, _, output = finding.name.partition('/')
    if output:
      verdicts[group].append(finding.verdict)
  return {group: dict(collections.Counter(those)) for group, those in verdicts.items() if len(those) > 1}


def _output_table(
  study: Mapping[str, Any], arm: str, group: str, found: Sequence[Finding], folder: Path
) -> dict[str, Any]:
  """The outputs of one task, or the tasks of one group, greatest gain first, with the scale of their bars."""
  ranked = sorted(found, key=lambda f: -(f.delta or 0.0) if f.higher_is_better else f.delta or 0.0)
  ends = [end for f in found for end in (f.delta, *(f.ci95 or ())) if end is not None]
  low, high = min([0.0, *ends]), max([0.0, *ends])
  figure = plots.intervals({arm: ranked}, numbers=_numbers(study), reference=study['arms'][0])
  plots.save(figure, folder, f'outputs-{arm}-{group}')
  outside = sum(f.direction in ('better', 'worse') for f in found)
  return {
    'group': group,
    'rows': ranked,
    'tested': all(f.verdict for f in found),
    'says': sorted({f.verdict or f.direction for f in found} - {''}),
    'low': low,
    'span': (high - low) or 1.0,
    'label': found[0].label,
    'arrow': '↑' if found[0].higher_is_better else '↓',
    'outside': outside,
    'by_chance': 0.05 * len(found),
  }


def _delta_m_rows(delta_m: Mapping[str, Any]) -> list[dict[str, Any]]:
  rows = [('all', delta_m), *((words.named(metric)[0], part) for metric, part in delta_m['per_metric'].items())]
  rows += [(f'outputs of {task}', part) for task, part in delta_m['per_output'].items() if part['num_terms']]

  return [
    {
      'name': name,
      'mean': _percent(part['mean']),
      'ci95': _percent_range(part['ci95']),
      'median': _percent(part['median']),
      'num_tasks': part['num_tasks'],
      'num_terms': part['num_terms'],
    }
    for name, part in rows
  ]


def _percent(value: float | None) -> str:
  return MISSING if value is None else f'{value:+.2f}%'.replace('-', '\N{MINUS SIGN}')


def _percent_range(ends: Sequence[float] | None) -> str:
  return MISSING if ends is None else ' to '.join(map(_percent, ends))


def _overview(study: Mapping[str, Any]) -> list[dict[str, Any]]:
  """All arms side by side, where there are several to compare."""
  rows = overview.rows(study) if len(study['arms']) > 2 else []
  return [
    row
    | {name: _percent(row[name]) for name in ('delta_m', 'median', 'worst_loss')}
    | {'ci95': _percent_range(row['ci95'])}
    for row in rows
  ]


def _notes(study: Mapping[str, Any], kept: Record) -> list[str]:
  """What a reader must know before believing the verdict."""
  notes = []
  if len(study['seeds']) < 2:
    notes.append('One seed: nothing was tested. Another seed may turn a difference around; set config.study.num_seeds.')
  diverged = kept.diverged()
  for one in diverged:
    notes.append(
      f'{one["program"]} of {one["arm"]} with seed {one["seed"]} diverged at step {one["step"]}; '
      'its seed is left out of the pairs.'
    )
  if study['dropped'] and not diverged:
    lost = ', '.join(f'{one["task"]} of {one["arm"]}, seed {one["seed"]}' for one in study['dropped'])
    notes.append(f'Without a test score, and left out: {lost}.')
  at_edge = [row['program'] for row in provenance.rates(study, kept) if row['edge']]
  if at_edge:
    notes.append(
      f'The best learning rate of {", ".join(at_edge[:6])}{" and others" * (len(at_edge) > 6)} lies at an end of the '
      'grid: a wider config.study.learning_rates might serve it better.'
    )
  return notes


def _intervals(study: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
  """A chart for each metric that is some task's main one, all arms in it; groups of tasks have bars in their tables."""
  by_arm = {arm: _alone(words.findings(study, arm)) for arm in study['arms'][1:]}
  drawn = []
  for metric in dict.fromkeys(f.metric for found in by_arm.values() for f in found):
    own = {arm: [f for f in found if f.metric == metric] for arm, found in by_arm.items()}
    figure = plots.intervals(own, numbers=_numbers(study), reference=study['arms'][0])
    plots.save(figure, folder, f'intervals-{metric}')
    label = words.named(metric)[0]
    said = '; '.join(f'{f.name} of {arm} {f.difference()}' for arm, found in own.items() for f in found[:MAX_OPEN_ROWS])
    heading = label[0].upper() + label[1:]
    drawn.append({'heading': heading, 'svg': template.drawing(figure), 'alt': f'{label} by task: {said}.'})
  return drawn


def _curves(study: Mapping[str, Any], kept: Record, folder: Path) -> list[dict[str, Any]]:
  """Training loss and main validation metric of each task over steps: means over seeds with a band of one deviation."""
  panels = []
  for task in sorted(kept.tasks, key=lambda task: '/' in task.name):  # Those of a group, which are many, come last.
    wanted = (('training loss', f'train/{task.name}/loss', 'loss'), ('validation', _validation(task), task.main_metric))
    for what, key, metric in wanted:
      found = {arm: curve for arm in study['arms'] if (curve := kept.curve(arm, key))}
      if not found:
        continue
      label, percent = words.named(metric)
      figure = charts.curves(
        {arm: (steps, mean) for arm, (steps, mean, _) in found.items()},
        run_numbers=_numbers(study),
        percent=percent,
        spread={arm: deviation for arm, (_, _, deviation) in found.items()},
      )
      plots.save(figure, folder, f'curve-{task.name}-{what}')
      ends = ', '.join(f'{arm} ends at {words.level(float(mean[-1]), metric)}' for arm, (_, mean, _) in found.items())
      heading = f'{task.name}: {what}' + (f' {label}' if metric != 'loss' else '')
      panels.append({'heading': heading, 'svg': template.drawing(figure), 'alt': f'{heading} over steps: {ends}.'})
  return panels


def _validation(task: Any) -> str:
  return f'val/{task.name}/{task.main_metric}'
