"""Samples people from a seed: who they are, how they look in each picture, and the labels that they get.

A person (an identity) fixes sex, age, build and taste; a picture adds the day's expression, pose and style. Each
attribute has a strength, a sum of those factors; its label is whether the strength plus the annotator's doubt is
positive. So labels correlate as CelebA's do, and none can be read off the picture without error.
"""

import dataclasses
import functools
from collections.abc import Mapping
from statistics import NormalDist

import numpy as np

from mtl_jax.data.synthetic.canvas import HEIGHT, SHAPES, WIDTH, Subject

# fmt: off
ATTRIBUTES = (
  '5_o_Clock_Shadow', 'Arched_Eyebrows', 'Attractive', 'Bags_Under_Eyes', 'Bald', 'Bangs', 'Big_Lips', 'Big_Nose',
  'Black_Hair', 'Blond_Hair', 'Blurry', 'Brown_Hair', 'Bushy_Eyebrows', 'Chubby', 'Double_Chin', 'Eyeglasses',
  'Goatee', 'Gray_Hair', 'Heavy_Makeup', 'High_Cheekbones', 'Male', 'Mouth_Slightly_Open', 'Mustache', 'Narrow_Eyes',
  'No_Beard', 'Oval_Face', 'Pale_Skin', 'Pointy_Nose', 'Receding_Hairline', 'Rosy_Cheeks', 'Sideburns', 'Smiling',
  'Straight_Hair', 'Wavy_Hair', 'Wearing_Earrings', 'Wearing_Hat', 'Wearing_Lipstick', 'Wearing_Necklace',
  'Wearing_Necktie', 'Young',
)
# fmt: on
VISIBLE = tuple(name for name in ATTRIBUTES if name != 'Attractive')  # The one that nothing is drawn for.

_FACTORS = ('age', 'smile', 'makeup', 'weight')
_LASTING = np.sqrt([0.9, 0.0, 0.75, 0.95])  # How much of each factor is the person's and not the picture's.
_MALE_SHARE = 0.42
_NEVER = 10.0  # A threshold that no strength reaches.


@dataclasses.dataclass(frozen=True)
class _Trait:
  """Model of an attribute: its share among men and women, its weights on the factors, and the residual.

  Attributes:
    male, female: the share of labels that are 1, near CelebA's; 0 is never.
    age, smile, makeup, weight: the correlation with each factor.
    lasting: how much of the rest is the person's.
    doubt: the standard deviation of the annotator's doubt, the strength's being 1.
  """

  male: float
  female: float
  age: float = 0.0
  smile: float = 0.0
  makeup: float = 0.0
  weight: float = 0.0
  lasting: float = 0.7
  doubt: float = 0.4


_TRAITS = {
  '5_o_Clock_Shadow': _Trait(0.28, 0.0, lasting=0.5),
  'Arched_Eyebrows': _Trait(0.07, 0.42, makeup=0.3),
  'Attractive': _Trait(0.39, 0.60, age=-0.55, makeup=0.45, weight=-0.35, doubt=0.3),
  'Bags_Under_Eyes': _Trait(0.34, 0.12, age=0.45, lasting=0.5),
  'Bald': _Trait(0.058, 0.0, age=0.55, lasting=1.0, doubt=0.2),
  'Bangs': _Trait(0.09, 0.21, lasting=0.4, doubt=0.25),
  'Big_Lips': _Trait(0.18, 0.29),
  'Big_Nose': _Trait(0.42, 0.10, age=0.35, weight=0.25, lasting=1.0),
  'Blurry': _Trait(0.05, 0.05, lasting=0.0),
  'Bushy_Eyebrows': _Trait(0.25, 0.07),
  'Chubby': _Trait(0.12, 0.02, age=0.25, weight=0.8),
  'Double_Chin': _Trait(0.10, 0.02, age=0.4, weight=0.7),
  'Eyeglasses': _Trait(0.115, 0.03, age=0.35, lasting=0.6, doubt=0.12),
  'Goatee': _Trait(0.15, 0.0, doubt=0.2),
  'Heavy_Makeup': _Trait(0.003, 0.66, makeup=0.92, lasting=0.2),
  'High_Cheekbones': _Trait(0.33, 0.54, smile=0.86, doubt=0.25),
  'Mouth_Slightly_Open': _Trait(0.44, 0.51, smile=0.70, lasting=0.0, doubt=0.15),
  'Mustache': _Trait(0.10, 0.0, doubt=0.2),
  'Narrow_Eyes': _Trait(0.125, 0.108, smile=0.25),
  'Oval_Face': _Trait(0.22, 0.33, weight=-0.5, doubt=0.4),
  'Pale_Skin': _Trait(0.03, 0.052, lasting=0.9),
  'Pointy_Nose': _Trait(0.18, 0.34, lasting=1.0, doubt=0.35),
  'Receding_Hairline': _Trait(0.13, 0.045, age=0.5),
  'Rosy_Cheeks': _Trait(0.015, 0.105, smile=0.35, makeup=0.4, lasting=0.2),
  'Sideburns': _Trait(0.136, 0.0, doubt=0.2),
  'Smiling': _Trait(0.42, 0.53, smile=1.0, doubt=0.18),
  'Wavy_Hair': _Trait(0.15, 0.44, lasting=0.6),
  'Straight_Hair': _Trait(0.25, 0.18, lasting=0.6),
  'Wearing_Earrings': _Trait(0.03, 0.30, makeup=0.3, lasting=0.2, doubt=0.2),
  'Wearing_Hat': _Trait(0.075, 0.028, lasting=0.4, doubt=0.12),
  'Wearing_Lipstick': _Trait(0.006, 0.81, makeup=0.88, lasting=0.2),
  'Wearing_Necklace': _Trait(0.03, 0.19, makeup=0.2, lasting=0.2, doubt=0.2),
  'Wearing_Necktie': _Trait(0.17, 0.003, age=0.2, lasting=0.4, doubt=0.2),
  'Young': _Trait(0.64, 0.87, age=-1.0, lasting=0.0),
}
_DRAWN = tuple(_TRAITS)  # Those with a factor model; hair colours, Male and No_Beard follow from others.
_WEIGHTS = np.array([[getattr(trait, factor) for factor in _FACTORS] for trait in _TRAITS.values()])
_REST = np.sqrt(np.maximum(0, 1 - (_WEIGHTS**2).sum(1)))
_KEPT = np.sqrt([trait.lasting for trait in _TRAITS.values()])
_PASSING = np.sqrt([1 - trait.lasting for trait in _TRAITS.values()])
_HAIR_COLOURS = ('Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Gray_Hair')
_HAIR_PRIORS = {True: (0.34, 0.03, 0.17, 0.035, 0.425), False: (0.19, 0.36, 0.21, 0.006, 0.234)}  # The last: other.
_BEARDS = ('5_o_Clock_Shadow', 'Goatee', 'Mustache', 'Sideburns')
_DOUBTS = np.array([_TRAITS[name].doubt if name in _TRAITS else 0.22 for name in ATTRIBUTES])

# Every block of 40 pictures shows its own ten people, one of them of the validation split and one of the test split:
# so picture i depends on (seed, i) alone, no person is in two splits, and no split is empty from 40 pictures on.
_BLOCK = 40
_PICTURES = (8, 6, 5, 5, 4, 4, 3, 2, 2, 1)  # Of each of a block's people.
_SPLITS = ('val', 'test', 'train', 'train', 'train', 'train', 'train', 'train', 'train', 'train')
_IDENTITY, _PERSON, _PICTURE, _LABEL = range(4)  # Streams of random numbers.


def _threshold(share: float, doubt: float) -> float:
  """The threshold that a standard normal strength must exceed for `share` of the labels to be 1."""
  return NormalDist().inv_cdf(1 - share) * (1 + doubt**2) ** 0.5 if share else _NEVER


_THRESHOLDS = {
  male: np.array([_threshold(trait.male if male else trait.female, trait.doubt) for trait in _TRAITS.values()])
  for male in (True, False)
}


@dataclasses.dataclass(frozen=True)
class _Person:
  """Traits that all pictures of an identity share; the arrays are standard normal."""

  male: bool
  factors: np.ndarray
  traits: np.ndarray
  hair: np.ndarray
  shape: Mapping[str, float]
  tone: float


def identity_of(index: int, *, seed: int) -> tuple[int, str]:
  """The number (from 1) and the split of the person in picture `index`."""
  block, place = divmod(index, _BLOCK)
  return _block_people(block, seed=seed)[place]


@functools.lru_cache(maxsize=16)
def _block_people(block: int, *, seed: int) -> list[tuple[int, str]]:
  """Identity and split of each picture of a block."""
  rng = np.random.default_rng([seed, _IDENTITY, block])
  splits = rng.permutation(_SPLITS).tolist()
  people = rng.permutation(np.repeat(np.arange(len(_SPLITS)), rng.permutation(_PICTURES)))
  return [(block * len(_SPLITS) + person + 1, splits[person]) for person in people.tolist()]


@functools.lru_cache(maxsize=64)
def _person(identity: int, *, seed: int) -> _Person:
  rng = np.random.default_rng([seed, _PERSON, identity])
  male = bool(rng.random() < _MALE_SHARE)
  tone = float(rng.beta(1.3, 2.2))
  colour = np.log(_HAIR_PRIORS[male]) + rng.gumbel(size=5) + (1.2 * (tone - 0.4), -2 * tone, 0, 0, 0)
  factors, traits = rng.normal(size=len(_FACTORS)), rng.normal(size=len(_DRAWN))
  shape: dict[str, float] = dict(zip(SHAPES, np.clip(rng.normal(size=len(SHAPES)), -2.5, 2.5).tolist(), strict=True))
  return _Person(male=male, factors=factors, traits=traits, hair=colour, shape=shape, tone=tone)


def subject_of(index: int, *, seed: int) -> Subject:
  """The face of picture `index`, ready to be drawn."""
  person = _person(identity_of(index, seed=seed)[0], seed=seed)
  rng = np.random.default_rng([seed, _PICTURE, index])
  factors = _LASTING * person.factors + np.sqrt(1 - _LASTING**2) * rng.normal(size=len(_FACTORS))
  rest = _REST * (_KEPT * person.traits + _PASSING * rng.normal(size=len(_DRAWN)))
  strength = dict(zip(_DRAWN, (_WEIGHTS @ factors + rest - _THRESHOLDS[person.male]).tolist(), strict=True))
  strength |= _hair_strengths(person, age=factors[0], today=rng.gumbel(size=5))
  strength['Male'] = float((1 if person.male else -1) * rng.uniform(0.3, 1.2))
  _settle(strength)
  turn = np.clip(rng.normal(size=6), -2.2, 2.2)
  return Subject(
    strength={name: strength[name] for name in ATTRIBUTES},
    shape=person.shape,
    tone=person.tone,
    hair_length=float(rng.beta(1, 5) if person.male else rng.beta(3.5, 1.5)),
    yaw=0.15 * turn[0],
    pitch=0.12 * turn[1],
    roll=0.075 * turn[2],
    scale=24.0 * float(np.exp(0.075 * turn[3])),
    centre=(WIDTH / 2 + 1.5 * turn[4], HEIGHT * 0.6 + 7.0 * turn[5]),
  )


def _hair_strengths(person: _Person, *, age: float, today: np.ndarray) -> dict[str, float]:
  """Each colour's lead over the best other one: at most one is positive; age brings gray."""
  score = person.hair + 0.25 * today + np.array([0, 0, 0, 1.5 * age, 0])
  second, first = np.sort(score)[-2:]
  lead = 0.8 * np.where(score == first, first - second, score - first)
  return dict(zip(_HAIR_COLOURS, lead[:4].tolist(), strict=True))


def _settle(strength: dict[str, float]) -> None:
  """Makes strengths agree in place: hair is straight or wavy and lies on a head that is not bald, and so on."""
  strength['Straight_Hair'] = min(strength['Straight_Hair'], -strength['Wavy_Hair'])
  for name in (*_HAIR_COLOURS, 'Straight_Hair', 'Wavy_Hair', 'Bangs'):
    strength[name] = min(strength[name], -strength['Bald'])
  strength['Bangs'] = min(strength['Bangs'], -strength['Receding_Hairline'])
  strength['No_Beard'] = -max(strength[name] for name in _BEARDS)


def labels_of(subject: Subject, index: int, *, seed: int) -> np.ndarray:
  """The annotator's labels of picture `index`, int8 `[40]` of 1 and 0 in CelebA's order."""
  rng = np.random.default_rng([seed, _LABEL, index])
  seen = np.array([subject.strength[name] for name in ATTRIBUTES]) + _DOUBTS * rng.normal(size=len(ATTRIBUTES))
  seen = dict(zip(ATTRIBUTES, seen.tolist(), strict=True))
  seen['Male'] = subject.strength['Male']
  seen['No_Beard'] = -max(seen[name] for name in _BEARDS)
  return np.array([seen[name] > 0 for name in ATTRIBUTES], np.int8)
