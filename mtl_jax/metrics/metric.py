"""The declaration of a metric: its names, unit and direction, and its place in reports and in Delta-m."""

from typing import NamedTuple


class Metric(NamedTuple):
  """One metric of a kind of task.

  Attributes:
    name: in the eval JSON.
    phrase: its name in a sentence.
    label: its name in a table.
    percent: a share, shown in per cent; otherwise in the labels' own unit.
    higher_is_better: its direction.
    in_delta_m: Delta-m averages over it.
    shown: reports have a column for it.
  """

  name: str
  phrase: str
  label: str
  percent: bool = False
  higher_is_better: bool = True
  in_delta_m: bool = False
  shown: bool = True
