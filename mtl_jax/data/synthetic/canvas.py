"""The subject that is drawn, and the canvas, with the projection from the face to the picture.

Face units: the origin lies midway between the eyes, one unit is half the distance between them, x goes to the viewer's
right and y down. The landmarks are projected by the same function as what is drawn, so they are exact.
"""

import cmath
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 178, 218
PARTS = ('background', 'skin', 'hair', 'eyes', 'brows', 'nose', 'mouth', 'glasses', 'hat')
OVERSAMPLING = 2
EYES = 1.0  # The eyes' distance from the middle, which defines the unit.
NOSE_TIP = (0.0, 1.25)
NOSE_LIFT = 0.45
SHAPES = (
  'mouth_width',
  'mouth_height',
  'eye_size',
  'face_length',
  'brow_height',
  'eye_colour',
  'paint_colour',
  'hair_volume',
)
_HAIR = {  # What colour the hair takes where the trait is strong.
  'Black_Hair': (28, 24, 26),
  'Blond_Hair': (226, 190, 112),
  'Brown_Hair': (104, 66, 38),
  'Gray_Hair': (176, 178, 184),
}
_OTHER_HAIR = (158, 62, 34)
_SKINS = np.array([(236, 190, 160), (222, 168, 132), (186, 128, 92), (124, 80, 56)], np.float32)
_TURN = np.linspace(0, 2 * np.pi, 25)[:-1]
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_ACROSS = np.linspace(-1, 1, 32)
_BLOB = Image.fromarray((255 * np.clip(1.15 - 1.15 * np.hypot(_ACROSS[:, None], _ACROSS), 0, 1)).astype(np.uint8))


@dataclasses.dataclass(frozen=True)
class Subject:
  """All that a picture shows, but for the clutter.

  Attributes:
    strength: for each attribute how clearly the face has it; 0 is where opinions divide, 1 is plain.
    shape: what makes this person's face their own, each of `SHAPES` about standard normal.
    tone: skin from 0, light, to 1, dark.
    hair_length: from 0, cropped, to 1, below the shoulders.
    yaw, pitch, roll: the head's turn in radians; positive yaw looks to the viewer's right, positive pitch down.
    scale: pixels a face unit.
    centre: where the middle of the face lies in the picture, pixels (x, y).
    units: how strongly facial action units are on, from 0 to 1, by name such as `AU12`; those not named are off.
  """

  strength: Mapping[str, float]
  shape: Mapping[str, float]
  tone: float
  hair_length: float
  yaw: float
  pitch: float
  roll: float
  scale: float
  centre: tuple[float, float]
  units: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def amount(self, name: str) -> float:
    """Strength to draw attribute `name` with, in [0, 1]; 0.5 is where opinions divide."""
    return 1 / (1 + math.exp(-min(max(3.5 * self.strength[name], -30.0), 30.0)))

  def unit(self, number: int) -> float:
    """Strength of an action unit."""
    return self.units.get(f'AU{number}', 0.0)

  def has(self, name: str) -> bool:
    """True to draw a thing that is there or not, as a hat."""
    return self.strength[name] > 0


def landmarks(subject: Subject) -> np.ndarray:
  """Left eye, right eye, nose, left and right mouth corner (the viewer's left): `[5, 2]` float32 pixels (x, y)."""
  half_width, corner_y = mouth_corners(subject)
  eyes_and_mouth = _project(subject, np.array([(-EYES, 0), (EYES, 0), (-half_width, corner_y), (half_width, corner_y)]))
  nose = _project(subject, np.array([NOSE_TIP]), lift=NOSE_LIFT)
  return np.concatenate([eyes_and_mouth[:2], nose, eyes_and_mouth[2:]]).astype(np.float32)


def mouth_corners(subject: Subject) -> tuple[float, float]:
  """Half the mouth's width and the height of its corners: a smile widens it and lifts them."""
  smile = subject.amount('Smiling')
  wider = 0.34 * subject.unit(12) + 0.26 * subject.unit(20) - 0.12 * subject.unit(24)
  lower = 0.3 * subject.unit(15) - 0.26 * subject.unit(12)
  return 0.68 + 0.48 * smile + 0.09 * subject.shape['mouth_width'] + wider, mouth_y(subject) - 0.26 * smile + lower


def mouth_y(subject: Subject) -> float:
  return 2.18 + 0.09 * subject.shape['mouth_height']


def _project(subject: Subject, points: np.ndarray, *, lift: float = 0.0, flat: bool = False) -> np.ndarray:
  """Face units `[n, 2]` to pixels `[n, 2]`: on the head's bulge, `lift` above it, or `flat` in the head's plane."""
  x, y = points[:, 0], points[:, 1]
  depth = lift
  if not flat:
    depth = depth + 1.1 * np.sqrt(np.maximum(0, 1 - (x / 2.3) ** 2 - ((y - 0.4) / 3.3) ** 2))
  turned = np.empty(len(points), complex)  # A roll is a product of complex numbers.
  turned.real = x * math.cos(subject.yaw) + depth * math.sin(subject.yaw)
  turned.imag = (y - 1) * math.cos(subject.pitch) + depth * math.sin(subject.pitch)
  return (turned * cmath.rect(subject.scale, subject.roll) + complex(*subject.centre)).view(float).reshape(-1, 2)


def mix(first, second, share: float) -> tuple[int, int, int]:
  """The colour `share` of the way from `first` to `second`."""
  r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
  return r, g, b


def ribbon(x: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
  """The rim of what lies between two curves over the same `x`."""
  return np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
  return _CIRCLE * (radius_x, radius_y) + (x, y)


class Canvas:
  """A picture under way, drawn in face units; it knows the subject's colours.

  With `parsing` each shape is drawn into `parts`, too, as the number of what it is of, which `part` names.
  """

  def __init__(self, subject: Subject, *, parsing: bool = False):
    self.subject = subject
    self.part = PARTS[0]
    self.image = Image.new('RGB', (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING))
    self.pen = ImageDraw.Draw(self.image)
    self.parts = Image.new('L', self.image.size)
    self.part_pen = ImageDraw.Draw(self.parts) if parsing else None
    self.pixel = subject.scale * OVERSAMPLING  # A face unit on the oversampled picture.
    self.outline = _outline(subject)
    self.edge = float(self.outline[:, 0].max())
    self.skin = _skin_colour(subject)
    self.shade = mix(self.skin, (60, 30, 24), 0.32)
    self.hair = _hair_colour(subject)
    self.strand = mix(self.hair, (255, 240, 220), 0.25) if sum(self.hair) < 200 else mix(self.hair, (0, 0, 0), 0.35)

  def _pixels(self, points, lift, flat) -> list[float]:
    pixels = _project(self.subject, np.asarray(points, float), lift=lift, flat=flat)
    return (pixels * OVERSAMPLING + (OVERSAMPLING - 1) / 2).ravel().tolist()  # Pixels' centres have whole coordinates.

  def polygon(self, points, colour, *, lift: float = 0.0, flat: bool = False) -> None:
    pixels = self._pixels(points, lift, flat)
    self.pen.polygon(pixels, fill=colour)
    if self.part_pen:
      self.part_pen.polygon(pixels, fill=PARTS.index(self.part))

  def both(self, draw: Callable[..., None], points, *how: Any, **where: Any) -> None:
    """Draws a shape of one side of the face on both."""
    for sign in (-1, 1):
      draw(np.array(points) * (sign, 1), *how, **where)

  def line(self, points, colour, width: float, *, lift: float = 0.0, flat: bool = False) -> None:
    """An open line; its width is in face units."""
    pixels, wide = self._pixels(points, lift, flat), max(1, round(width * self.pixel))
    self.pen.line(pixels, fill=colour, width=wide)
    if self.part_pen:
      self.part_pen.line(pixels, fill=PARTS.index(self.part), width=wide)

  def blob(self, middle, radius_x: float, radius_y: float, colour, opacity: float) -> None:
    """A spot that fades towards its rim; light on what is there, and no part of its own."""
    size = max(2, round(2 * radius_x * self.pixel)), max(2, round(2 * radius_y * self.pixel))
    mask = _BLOB.resize(size).point([round(opacity * value) for value in range(256)])
    left, top = self._pixels([middle], 0.0, False)
    self.image.paste(colour, (round(left - size[0] / 2), round(top - size[1] / 2)), mask)


def _skin_colour(subject: Subject) -> tuple[int, int, int]:
  place = subject.tone * (len(_SKINS) - 1)
  first = min(int(place), len(_SKINS) - 2)
  return mix(mix(_SKINS[first], _SKINS[first + 1], place - first), (252, 238, 232), 0.8 * subject.amount('Pale_Skin'))


def _hair_colour(subject: Subject) -> tuple[int, int, int]:
  """The colours' blend by how strong each is; where none is, the hair is red."""
  weights = np.exp(np.clip(4 * np.array([subject.strength[name] for name in _HAIR] + [0.0]), -30, 30))
  red, green, blue = weights @ np.array([*_HAIR.values(), _OTHER_HAIR], float) / weights.sum()
  return round(red), round(green), round(blue)


def _outline(subject: Subject) -> np.ndarray:
  """The head's rim `[32, 2]`, from the right ear down round the chin: wide if chubby, square if male, long if oval."""
  angle = np.linspace(0, 2 * np.pi, 33)[:-1]
  oval, chubby, male = subject.amount('Oval_Face'), subject.amount('Chubby'), subject.amount('Male')
  width = 1.86 - 0.14 * oval + 0.26 * chubby + 0.05 * male
  length = 3.1 + 0.22 * oval + 0.12 * male + 0.06 * subject.shape['face_length']
  square = np.where(np.sin(angle) > 0, 0.92 - 0.24 * male - 0.2 * chubby + 0.14 * oval, 0.9)
  cos, sin = np.cos(angle), np.sin(angle)
  return np.stack([width * np.sign(cos) * np.abs(cos) ** square, np.where(sin > 0, length, 2.45) * sin], 1)
