"""Draws a subject: the parts of the face from back to front, then the light and the camera."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from mtl_jax.data.synthetic.canvas import (
  EYES,
  HEIGHT,
  NOSE_LIFT,
  NOSE_TIP,
  OVERSAMPLING,
  WIDTH,
  Canvas,
  Subject,
  ellipse,
  mix,
  mouth_corners,
  mouth_y,
  ribbon,
)

_ACROSS = np.linspace(-1, 1, 9)


def draw(subject: Subject, rng: np.random.Generator, *, parsing: bool = False) -> tuple[np.ndarray, np.ndarray]:
  """The picture, uint8 `[218, 178, 3]`, and with `parsing` the part that each pixel shows, uint8 `[218, 178]`.

  `rng` decides the background, what hides the face, the light and the noise. Parts are numbers of `PARTS`, each that of
  what is drawn last, whether or not the camera blurs it. Clothes, jewels and boxes before the face are background,
  beards are hair, and a hand is skin.
  """
  behind, before, light = rng.spawn(3)  # Apart, so that a trait changes what shows it and not the noise.
  canvas = Canvas(subject, parsing=parsing)
  _draw_background(canvas, behind)
  _of(canvas, 'hair', _draw_long_hair)
  _draw_body(canvas, behind)
  _of(canvas, 'skin', _draw_head)
  _of(canvas, 'skin', _draw_skin)
  _of(canvas, 'hair', _draw_beard)
  _of(canvas, 'eyes', _draw_eyes)
  _of(canvas, 'nose', _draw_nose)
  _of(canvas, 'mouth', _draw_mouth)
  _of(canvas, 'hair', _draw_moustache)
  _of(canvas, 'hair', _draw_hair)
  _of(canvas, 'hat', _draw_hat, behind)
  _of(canvas, 'background', _draw_jewels)
  _of(canvas, 'glasses', _draw_glasses, before)
  _of(canvas, 'background', _draw_occluders, before)
  parts = np.asarray(canvas.parts)[OVERSAMPLING // 2 :: OVERSAMPLING, OVERSAMPLING // 2 :: OVERSAMPLING]
  return _photograph(canvas.image, subject, light), parts


def _of(canvas: Canvas, part: str, draw_shapes: Callable[..., None], *arguments: Any) -> None:
  """Draws shapes of a part."""
  canvas.part = part
  draw_shapes(canvas, *arguments)


def _draw_background(canvas: Canvas, rng: np.random.Generator) -> None:
  width, height = canvas.image.size
  first, second = rng.integers(50, 210, (2, 3))
  bands = np.linspace(0, 1, 24)[:, None] * (second - first) + first
  for band, colour in enumerate(bands.astype(int).tolist()):
    canvas.pen.rectangle((0, band * height // 24, width, (band + 1) * height // 24), fill=tuple(colour))
  centres, sizes = rng.random((5, 1, 2)) * (width, height), rng.uniform(15, 80, (5, 1, 1))
  corners = centres + sizes * rng.normal(size=(5, 4, 2))
  for points, colour in zip(corners.tolist(), rng.integers(30, 230, (5, 3)).tolist(), strict=True):
    canvas.pen.polygon([tuple(point) for point in points], fill=tuple(colour))


def _draw_long_hair(canvas: Canvas) -> None:
  """Hair behind the face: its rim waves or not."""
  subject = canvas.subject
  if subject.hair_length < 0.3 or subject.has('Bald'):
    return
  wave, bottom = subject.amount('Wavy_Hair'), 1.0 + 3.0 * subject.hair_length
  down = np.linspace(-1.8, bottom, 15)
  side = 2.15 + 0.12 * subject.shape['hair_volume'] + 0.3 * wave + 0.24 * wave * np.sin(down * 4.5)
  side *= np.sqrt(1 - np.linspace(-0.75, 0.7, 15) ** 4)  # Rounded at the crown and at the ends.
  rim = np.concatenate([np.stack([-side, down], 1), np.stack([side, down], 1)[::-1]])
  canvas.polygon(rim, canvas.hair, flat=True)
  for inward in (0.12, 0.3, 0.48):
    canvas.both(canvas.line, np.stack([side - inward, down], 1), canvas.strand, 0.05, flat=True)


def _draw_body(canvas: Canvas, rng: np.random.Generator) -> None:
  """Neck, clothes, and what is worn round the neck."""
  subject = canvas.subject
  cloth, tie, shirt = (tuple(colour) for colour in rng.integers(40, 215, (3, 3)).tolist())
  neck = 0.85 + 0.3 * subject.amount('Male') + 0.2 * subject.amount('Chubby')
  canvas.part = 'skin'
  canvas.polygon([(-neck, 1.5), (neck, 1.5), (neck + 0.1, 4.4), (-neck - 0.1, 4.4)], canvas.shade, flat=True)
  canvas.part = 'background'
  canvas.polygon(
    [(-4.5, 6), (-3.6, 4.3), (-neck, 3.55), (0, 4.3), (neck, 3.55), (3.6, 4.3), (4.5, 6)], cloth, flat=True
  )
  if subject.has('Wearing_Necktie'):
    pale = mix(shirt, (250, 250, 250), 0.8)
    canvas.polygon([(-neck - 0.2, 3.35), (0, 4.05), (neck + 0.2, 3.35), (1.5, 6), (-1.5, 6)], pale, flat=True)
    canvas.polygon([(-0.34, 3.62), (0.34, 3.62), (0.24, 4.05), (0.5, 6), (-0.5, 6), (-0.24, 4.05)], tie, flat=True)
  if subject.has('Wearing_Necklace'):
    beads = np.stack([_ACROSS * (neck + 0.1), 4.12 - 0.65 * _ACROSS**2], 1)
    canvas.line(beads, (244, 222, 130), 0.1, flat=True)
    for x, y in beads.tolist():
      canvas.polygon(ellipse(x, y, 0.13, 0.13), (255, 244, 190), flat=True)


def _draw_head(canvas: Canvas) -> None:
  """Ears, the face's plain skin, and a second chin under the first."""
  subject, outline = canvas.subject, canvas.outline
  for sign in (-1, 1):
    canvas.polygon(ellipse(sign * canvas.edge, 0.45, 0.26, 0.52), canvas.shade, flat=True)
  chin, double = outline[:, 1].max(), subject.amount('Double_Chin')
  if double > 0.15:
    canvas.polygon(ellipse(0, chin - 0.1, 0.9 + 0.5 * double, 0.1 + 0.5 * double), canvas.shade, flat=True)
    canvas.polygon(ellipse(0, chin - 0.18, 0.85 + 0.48 * double, 0.1 + 0.46 * double), canvas.skin, flat=True)
    canvas.polygon(outline, mix(canvas.skin, canvas.shade, 0.5 + 0.5 * double), flat=True)
    outline = outline * (0.98, 0.97)
  canvas.polygon(outline, canvas.skin, flat=True)


def _draw_skin(canvas: Canvas) -> None:
  """Cheeks, and the lines of age."""
  subject = canvas.subject
  bones, rosy, age = subject.amount('High_Cheekbones'), subject.amount('Rosy_Cheeks'), 1 - subject.amount('Young')
  if bones > 0.1:
    canvas.both(canvas.line, [(1.62, 1.0), (1.3, 1.5), (1.12, 1.95)], canvas.shade, 0.16 * bones)
    canvas.both(canvas.blob, (1.22, 0.95), 0.6, 0.42, (255, 246, 236), 0.75 * bones)
  if rosy > 0.1:
    canvas.both(canvas.blob, (1.2, 1.2), 0.7, 0.6, (238, 72, 96), 0.75 * rosy)
  if age > 0.1:
    line = mix(canvas.skin, (50, 24, 20), 0.55 * age)
    canvas.both(canvas.line, [(0.45, 1.35), (0.85, 1.75), (1.2, 2.35)], line, 0.07)
    canvas.both(canvas.line, [(1.5, -0.15), (1.72, -0.3)], line, 0.06)
    canvas.both(canvas.line, [(1.5, 0.05), (1.74, 0.1)], line, 0.06)
    for y in (-1.25, -1.0):
      canvas.line([(-0.85, y + 0.05), (0, y - 0.03), (0.85, y + 0.05)], mix(canvas.skin, (50, 24, 20), 0.5 * age), 0.06)


def _draw_beard(canvas: Canvas) -> None:
  """Stubble over the jaw, a strap along it, sideburns and a goatee; the moustache comes after the mouth."""
  subject, outline = canvas.subject, canvas.outline
  jaw = outline[2:15] * (0.97, 0.97)
  stubble = subject.amount('5_o_Clock_Shadow')
  if stubble > 0.1:
    colour = mix(canvas.skin, mix(canvas.hair, (52, 56, 66), 0.7), 0.5 * stubble)
    canvas.part = 'skin'  # Seen through the stubble.
    canvas.polygon(np.concatenate([jaw, [(-1.15, 1.55), (0, 1.5), (1.15, 1.55)]]), colour, flat=True)
    canvas.part = 'hair'
  strap = 1 - subject.amount('No_Beard')
  if strap > 0.3:
    canvas.polygon(np.concatenate([jaw, jaw[::-1] * (0.88, 0.93 - 0.05 * strap)]), _beard(canvas, strap), flat=True)
  if subject.has('Sideburns'):
    edge = canvas.edge
    corners = [(edge, -0.7), (edge - 0.34, -0.6), (edge - 0.38, 1.15), (edge - 0.08, 1.25)]
    canvas.both(canvas.polygon, corners, canvas.hair, flat=True)
  if subject.has('Goatee'):
    middle = mouth_y(subject)
    around = [(-0.62, middle + 0.3), (0, middle + 0.4), (0.62, middle + 0.3), (0.5, middle + 0.95), (0, middle + 1.12)]
    canvas.polygon([*around, (-0.5, middle + 0.95)], canvas.hair)


def _beard(canvas: Canvas, amount: float) -> tuple[int, int, int]:
  return mix(canvas.skin, canvas.hair, 0.25 + 0.6 * amount)


def _draw_moustache(canvas: Canvas) -> None:
  if canvas.subject.has('Mustache'):
    lip = mouth_y(canvas.subject) - 0.26
    half = [(0, lip - 0.24), (0.42, lip - 0.2), (0.86, lip + 0.2), (0.45, lip + 0.08), (0, lip + 0.02)]
    canvas.both(canvas.polygon, half, canvas.hair)


def _draw_eyes(canvas: Canvas) -> None:
  """Eyes, their make-up and bags, and the brows."""
  subject = canvas.subject
  makeup, bags, narrow = (subject.amount(name) for name in ('Heavy_Makeup', 'Bags_Under_Eyes', 'Narrow_Eyes'))
  larger = 0.02 * subject.shape['eye_size']
  half_width, height = 0.44 + larger, (0.27 + larger) * (1 - 0.62 * narrow) * (1 + 0.5 * subject.unit(5))
  lid = np.stack([_ACROSS * half_width, -height * (1 - _ACROSS**2)], 1)
  eye = np.concatenate([lid, (lid * (1, -0.8 + 0.5 * subject.unit(7)))[::-1]])
  shadow = ((96, 60, 130), (60, 84, 130), (120, 70, 60))[int(subject.shape['paint_colour'] * 10) % 3]
  iris = ((70, 44, 26), (70, 110, 150), (80, 112, 72), (40, 28, 22))[int(subject.shape['eye_colour'] * 10) % 4]
  for sign in (-1, 1):
    at = (sign * EYES, 0.0)
    canvas.part = 'skin'
    if makeup > 0.1:
      canvas.polygon(lid * (1.15, 1.6) + at + (0, -0.04), mix(canvas.skin, shadow, 0.85 * makeup))
    if bags > 0.1:
      under = np.stack([_ACROSS * 0.46, 0.33 + 0.17 * (1 - _ACROSS**2)], 1) + at
      canvas.line(under, mix(canvas.skin, (70, 34, 60), 0.7 * bags), 0.06 + 0.1 * bags)
    canvas.part = 'eyes'
    canvas.polygon(eye + at, (240, 238, 236))
    canvas.polygon(ellipse(at[0], 0, 0.19, min(0.19, height)), iris)
    canvas.polygon(ellipse(at[0], 0, 0.08, min(0.08, height)), (12, 10, 10))
    canvas.line(lid + at, mix(canvas.shade, (16, 10, 12), 0.3 + 0.7 * makeup), 0.06 + 0.09 * makeup)
    _of(canvas, 'brows', _draw_brow, sign)
    _of(canvas, 'skin', _draw_wrinkles, sign)


def _draw_wrinkles(canvas: Canvas, sign: int) -> None:
  """Lines on one side of the face that action units make, where nothing else shows them."""
  lines = {
    6: [[(1.42, 0.3), (1.75, 0.5)], [(1.42, 0.12), (1.8, 0.16)], [(0.62, 0.42), (1.35, 0.46)]],
    9: [[(0.1, 0.32), (0.34, 0.2)], [(0.12, 0.55), (0.38, 0.42)]],
    11: [[(0.42, 1.22), (0.72, 1.62), (0.86, 2.0)]],
    17: [[(0.0, 2.72), (0.3, 2.78), (0.45, 2.95)]],
    23: [[(0.16, 1.72), (0.16, 1.9)], [(0.42, 1.78), (0.42, 1.96)]],
  }
  for number, drawn in lines.items():
    if strength := canvas.subject.unit(number):
      for line in drawn:
        canvas.line(np.array(line) * (sign, 1), mix(canvas.skin, (50, 24, 20), 0.75 * strength), 0.08)


def _draw_brow(canvas: Canvas, sign: int) -> None:
  subject = canvas.subject
  thick = 0.05 + 0.13 * subject.amount('Bushy_Eyebrows') + 0.04 * subject.amount('Male')
  arch = 0.02 + 0.34 * subject.amount('Arched_Eyebrows')
  across = np.linspace(0, 1, 7)
  middle = -0.62 - 0.04 * subject.shape['brow_height'] - arch * np.sin(np.pi * across**1.4) + 0.3 * arch
  taper = thick * (1 - 0.6 * across)
  middle = middle - 0.26 * subject.unit(1) * (1 - across) - 0.26 * subject.unit(2) * across
  middle = middle + 0.26 * subject.unit(4) * (1 - 0.6 * across)
  x = sign * (0.5 - 0.16 * subject.unit(4) + 1.05 * across)
  canvas.polygon(ribbon(x, middle - taper, middle + taper), mix(canvas.hair, (30, 20, 16), 0.45))


def _draw_nose(canvas: Canvas) -> None:
  """Broad if big; a sharp triangle if pointy, else round."""
  subject = canvas.subject
  big, pointy = subject.amount('Big_Nose'), subject.amount('Pointy_Nose')
  wing, (x, y) = 0.27 + 0.27 * big, NOSE_TIP
  bright, dark = mix(canvas.skin, (255, 250, 244), 0.3), mix(canvas.skin, (60, 30, 24), 0.5)
  ridge = 0.1 + 0.08 * big
  canvas.polygon([(-ridge, 0.1), (ridge, 0.1), (wing * 0.8, y), (-wing * 0.8, y)], bright, lift=0.2)
  canvas.line([(ridge, 0.0), (wing * 0.7, y - 0.1)], canvas.shade, 0.06, lift=0.2)
  round_tip = wing * (1 - 0.45 * pointy)
  canvas.polygon(ellipse(x, y, round_tip, 0.14 + 0.12 * big), bright, lift=NOSE_LIFT)
  for sign in (-1, 1):
    canvas.polygon(ellipse(sign * wing * 0.6, y + 0.14, 0.08 + 0.05 * big, 0.06), dark, lift=0.3)
    canvas.line([(sign * wing, y - 0.14), (sign * wing * 1.08, y + 0.08), (sign * wing * 0.8, y + 0.18)], dark, 0.06)
  if pointy > 0.1:
    colour = mix(canvas.skin, (70, 34, 26), 0.65 * pointy)
    tip = y + 0.1 + 0.25 * pointy
    canvas.polygon([(-wing * 0.75, y + 0.05), (wing * 0.75, y + 0.05), (0, tip)], colour, lift=NOSE_LIFT - 0.05)


def _draw_mouth(canvas: Canvas) -> None:
  """Lips between the two corners, painted and full or not; teeth where it is open."""
  subject = canvas.subject
  half_width, corner_y = mouth_corners(subject)
  across = np.linspace(-1, 1, 13)
  bulge = 1 - across**2
  middle = mouth_y(subject) + 0.12 * subject.amount('Smiling')
  seam = middle + (corner_y - middle) * across**2
  gap = 0.03 + 0.5 * subject.amount('Mouth_Slightly_Open') + 0.26 * subject.unit(25) + 0.42 * subject.unit(26)
  thick = (0.1 + 0.17 * subject.amount('Big_Lips')) * (1 - 0.6 * subject.unit(24))
  x = across * half_width
  upper, lower = seam - (0.25 * gap + 0.2 * subject.unit(10)) * bulge, seam + 0.75 * gap * bulge
  paint = ((190, 12, 40), (214, 40, 110), (120, 16, 60))[int(subject.shape['paint_colour'] * 7) % 3]
  bare = mix(canvas.skin, (150, 60, 60), 0.6 - 0.3 * subject.amount('Male'))
  lips = mix(bare, paint, 0.95 * subject.amount('Wearing_Lipstick'))
  canvas.polygon(ribbon(x, upper - thick * bulge**0.6, lower + 1.25 * thick * bulge**0.6), lips)
  canvas.polygon(ribbon(x, upper, lower), (56, 14, 18))
  if gap > 0.15:
    inner = slice(2, -2)
    canvas.polygon(ribbon(x[inner], upper[inner], (upper + 0.4 * (lower - upper))[inner]), (246, 244, 236))


def _draw_hair(canvas: Canvas) -> None:
  """The hair over the forehead down to the hairline, with strands and bangs, or what a bald head has of it."""
  subject, edge = canvas.subject, canvas.edge
  if subject.has('Bald'):
    for sign in (-1, 1):
      canvas.polygon(ellipse(sign * (edge - 0.02), -0.45, 0.18, 0.55), canvas.hair, flat=True)
    canvas.blob((0.4, -1.7), 0.8, 0.5, (255, 255, 250), 0.6)
    return
  bangs, x = subject.amount('Bangs'), np.linspace(-1, 1, 17)
  receding = subject.amount('Receding_Hairline') * (1 - bangs)
  forehead = 1.45 + receding * (0.62 + 0.25 * np.sin(np.pi * x) ** 2)
  hairline = (forehead + 0.35) * x**4 - forehead
  angle = np.linspace(math.pi, 2 * math.pi, 21)
  bulk = 0.22 + 0.05 * subject.shape['hair_volume'] + 0.15 * subject.amount('Wavy_Hair') * np.sin(angle * 14)
  top = np.stack([(edge + bulk) * np.cos(angle), 0.35 + (2.95 + bulk) * np.sin(angle)], 1)
  canvas.polygon(np.concatenate([top, np.stack([x * edge, hairline], 1)[::-1]]), canvas.hair, flat=True)
  _draw_strands(canvas, edge)
  if bangs > 0.1:
    fringe = -1.5 + 0.98 * bangs - 0.12 * (np.arange(17) % 2) * bangs
    rim = [np.stack([x * (edge - 0.25), fringe], 1), [(edge - 0.4, -2.0), (-edge + 0.4, -2.0)]]
    canvas.polygon(np.concatenate(rim), mix(canvas.hair, canvas.strand, 0.15), flat=True)


def _draw_strands(canvas: Canvas, edge: float) -> None:
  """Lines over the crown: straight and parallel, waving, or hardly any where the hair is neither."""
  straight, wave = canvas.subject.amount('Straight_Hair'), canvas.subject.amount('Wavy_Hair')
  colour = mix(canvas.hair, canvas.strand, max(straight, wave))
  along = np.linspace(0, 1, 12)
  for start in (-0.9, -0.62, -0.34, 0.34, 0.62, 0.9):
    x = start * edge * (0.35 + 0.65 * along)
    y = -2.6 + (0.75 + 1.3 * start**2) * along
    sway = 0.16 * wave * np.sin(along * 14)
    canvas.line(np.stack([x + sway, y], 1), colour, 0.07 if wave > straight else 0.05, flat=True)


def _draw_hat(canvas: Canvas, rng: np.random.Generator) -> None:
  colour, band = (tuple(colour) for colour in rng.integers(0, 256, (2, 3)).tolist())
  if canvas.subject.has('Wearing_Hat'):
    edge = canvas.edge
    dome = [(-edge - 0.3, -1.15), (-edge - 0.1, -2.6), (-1.2, -3.5), (1.2, -3.5), (edge + 0.1, -2.6)]
    brim = [(-edge - 0.6, -1.0), (-edge, -1.5), (edge, -1.5), (edge + 0.6, -1.0), (0, -0.78)]
    canvas.polygon([*dome, (edge + 0.3, -1.15)], colour, flat=True)
    canvas.polygon(brim, band, flat=True)


def _draw_jewels(canvas: Canvas) -> None:
  if canvas.subject.has('Wearing_Earrings'):
    edge = canvas.edge + 0.1
    for sign in (-1, 1):
      canvas.polygon(ellipse(sign * edge, 1.35, 0.22, 0.36), (250, 222, 110), flat=True)
      canvas.polygon(ellipse(sign * edge, 1.35, 0.1, 0.2), (255, 252, 235), flat=True)


def _draw_glasses(canvas: Canvas, rng: np.random.Generator) -> None:
  """Frames over the eyes, one pair in four dark."""
  kind, dark = rng.random(2)
  if not canvas.subject.has('Eyeglasses'):
    return
  frame = (24, 22, 26) if kind < 0.7 else (120, 60, 30)
  square = ellipse(0, 0, 0.72, 0.5) if kind < 0.5 else np.clip(ellipse(0, 0, 0.9, 0.65), (-0.7, -0.42), (0.7, 0.42))
  for sign in (-1, 1):
    lens = square + np.array([sign * EYES, 0.03])
    if dark < 0.25:
      canvas.polygon(lens, (30, 28, 34), lift=0.1)
    canvas.line(np.concatenate([lens, lens[:1]]), frame, 0.12, lift=0.1)
    canvas.line([(sign * 1.7, -0.1), (sign * 2.0, 0.1)], frame, 0.11)
  canvas.line([(-0.32, -0.05), (0.32, -0.05)], frame, 0.12, lift=0.3)


def _draw_occluders(canvas: Canvas, rng: np.random.Generator) -> None:
  """Now and then something before the face: a box, a hand, strands of hair."""
  what, angle, reach = rng.random(3)
  colour = tuple(rng.integers(0, 256, 3).tolist())
  spot = np.array([math.cos(2 * math.pi * angle), math.sin(2 * math.pi * angle)]) * (1.9, 2.3) + (0, 0.8)
  if what < 0.12:
    box = rng.normal(size=2) * 0.3 + np.array([(-1, -0.8), (1, -0.8), (1, 0.8), (-1, 0.8)]) * (0.4 + 0.5 * reach)
    canvas.polygon(box + spot, colour, flat=True)
  elif what < 0.18:
    canvas.part = 'skin'
    for x, y in (spot + np.array([(0.36 * finger - 0.5, -0.1 * finger) for finger in range(4)])).tolist():
      canvas.polygon(ellipse(x, y, 0.2, 0.8), canvas.skin, flat=True)
      canvas.polygon(ellipse(x + 0.15, y, 0.04, 0.7), canvas.shade, flat=True)
  elif what < 0.30:
    canvas.part = 'hair'
    starts, ends = rng.uniform(-1.6, 1.6, (2, 7))
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
      canvas.line([(start, -2.2), ((start + end) / 2 + 0.3, 0), (end + angle, 2.2)], canvas.hair, 0.06, flat=True)


def _photograph(drawn: Image.Image, subject: Subject, rng: np.random.Generator) -> np.ndarray:
  """The drawing as a camera sees it: out of focus or not, lit from one side, tinted and grainy."""
  image = drawn.reduce(OVERSAMPLING)
  blur = 3.6 * subject.amount('Blurry')
  if blur > 0.5:
    image = image.filter(ImageFilter.BoxBlur(blur))
  side, steep, brightness, grain = rng.random(), rng.uniform(0, 0.4), rng.normal(0.97, 0.11), rng.uniform(2, 9)
  across = steep * math.cos(2 * math.pi * side) * np.linspace(-1, 1, WIDTH)
  down = steep * math.sin(2 * math.pi * side) * np.linspace(-1, 1, HEIGHT) + 1
  field = min(max(brightness, 0.55), 1.35) * (down[:, None].astype(np.float32) + across.astype(np.float32))
  noise = grain * rng.standard_normal((HEIGHT, WIDTH), dtype=np.float32)
  photograph = np.empty((HEIGHT, WIDTH, 3), np.uint8)
  for channel, (plane, tint) in enumerate(zip(image.split(), rng.normal(1, 0.04, 3).tolist(), strict=True)):
    lit = np.asarray(plane) * (tint * field) + noise  # A plane at a time stays in the cache.
    photograph[..., channel] = np.clip(lit, 0, 255, out=lit)
  return photograph
