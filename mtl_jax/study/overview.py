"""All arms of a study in one table: what each gains over all tasks, where it loses most, and what it takes."""

from collections.abc import Mapping
from typing import Any

from mtl_jax.study import significance, words
from mtl_jax.study.words import Finding


def rows(study: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A row for each arm but the reference, least delta-m first.

  Each holds `arm`, `delta_m` with its `ci95` and `median`, all in per cent (lower is better); `worst`, the task that
  the arm serves worst, and `worst_loss`, by how many per cent of the reference its main metric is worse; `helps` and
  `hurts`, how many tasks; `seconds` of training and their ratio to the reference's, `seconds_ratio`. What is not known
  is None.
  """
  reference, *arms = study['arms']
  found = [_row(study, arm, reference) for arm in arms]
  return sorted(found, key=lambda row: (row['delta_m'] is None, row['delta_m']))


def _row(study: Mapping[str, Any], arm: str, reference: str) -> dict[str, Any]:
  findings = words.findings(study, arm)
  delta_m = words.comparison(study, arm)['delta_m']
  losses = {one.name: loss for one in findings if (loss := _loss(one)) is not None}
  worst = max(losses, key=lambda name: losses[name], default=None)
  own, others = (study.get('cost', {}).get(side, {}).get('seconds') for side in (arm, reference))
  verdicts = [one.verdict for one in findings]
  return {
    'arm': arm,
    'delta_m': delta_m['mean'],
    'ci95': delta_m['ci95'],
    'median': delta_m['median'],
    'worst': worst,
    'worst_loss': losses.get(worst) if worst else None,
    'helps': verdicts.count(significance.HELPS),
    'hurts': verdicts.count(significance.HURTS),
    'seconds': own,
    'seconds_ratio': own / others if own and others else None,
  }


def _loss(finding: Finding) -> float | None:
  """By how many per cent of the reference the arm is worse."""
  level = finding.reference['mean']
  if finding.delta is None or not level:
    return None
  return 100 * finding.delta / level * (-1 if finding.higher_is_better else 1)
