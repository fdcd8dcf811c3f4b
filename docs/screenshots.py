"""Takes the docs' pictures of pages in headless Chromium, from synthetic faces alone: `python docs/screenshots.py`.

Trains for about ten minutes on two CPU cores; what it trained stays in `--workdir`, and called again it only takes the
pictures. Needs Chromium and chromedriver (Debian: `apt-get install chromium chromium-driver`) and the extra `test`.
"""

import argparse
import base64
import contextlib
import importlib.util
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
# Of a picture: the page, its place in the docs, the window's width, dark or not, and the pixels from the top on.
PICTURES = (
  ('demo', 'report.png', 1000, False, 2220),
  ('study', 'images/study.png', 1400, False, 1080),
  ('sweep', 'images/sweep.png', 1400, False, 1080),
  ('sweep', 'images/sweep-phone.png', 400, True, 900),
)
MAX_BYTES = 150_000
# A net and a budget so small that many replicas of it train in minutes.
SMALL = {
  'model.backbone': 'convnet',
  'model.width': 8,
  'train.steps': 150,
  'train.batch_size': 32,
  'eval.every_steps': 50,
  'optimizer.learning_rate': 1e-2,
  'objective.weights.landmarks': 1.0,
}
STUDY = {'study.num_seeds': 8}
SWEEP = {
  'train.steps': 60,
  'eval.every_steps': 20,
  'sweep.sampler': 'grid',
  'sweep.weights_of': ('attributes', 'landmarks'),
  'sweep.weight_steps': 6,
  'sweep.best': 'gains',
  'sweep.confirm_seeds': 3,
  'sweep.methods': ('uncertainty', 'famo', 'cagrad'),
}
FLAGS = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync', '--hide-scrollbars',
  '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost',
)  # fmt: skip


def missing() -> str:
  """Says what is needed for a browser and is not here; empty where nothing is."""
  here = {
    'Chromium': _chromium(),
    'chromedriver': shutil.which('chromedriver'),
    'selenium': importlib.util.find_spec('selenium'),
  }
  return ', '.join(f'no {name} here' for name, found in here.items() if not found)


def _chromium() -> str:
  names = ('chromium', 'chromium-browser', 'google-chrome')
  return next((found for name in names if (found := shutil.which(name))), '')


class Seen(NamedTuple):
  """A page as a browser shows it.

  Attributes:
    problems: errors and warnings of its console.
    requested: addresses that were asked for, but for the page itself and what is written in it.
    wider: pixels by which it is wider than the window.
  """

  problems: list[str]
  requested: list[str]
  wider: int


class Browser:
  """One headless Chromium without a network; `driver` is Selenium's."""

  def __init__(self, driver: Any):
    self.driver = driver

  def open(self, page: Path, *, width: int, dark: bool = False, height: int = 900) -> Seen:
    """Opens a page in a window of that size, as one who wants it light or dark."""
    scheme = [{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}]
    screen = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': False}
    self.driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
    self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': scheme})
    for kind in ('browser', 'performance'):
      self.driver.get_log(kind)  # Those of the page before.
    self.driver.get(page.as_uri())
    messages = [json.loads(line['message'])['message'] for line in self.driver.get_log('performance')]
    urls = [one['params']['request']['url'] for one in messages if one['method'] == 'Network.requestWillBeSent']
    return Seen(
      [line['message'] for line in self.driver.get_log('browser')],
      [url for url in urls if url != page.as_uri() and not url.startswith('data:')],
      self.driver.execute_script('return document.documentElement.scrollWidth - innerWidth'),
    )

  def picture(self, *, top: int = 0, height: int | None = None) -> bytes:
    """The page, or so many pixels of it from the top on, as PNG."""
    size = self.driver.execute_cdp_cmd('Page.getLayoutMetrics', {})['cssContentSize']
    clip = {'x': 0, 'y': top, 'width': size['width'], 'height': height or size['height'] - top, 'scale': 1}
    shot = {'format': 'png', 'captureBeyondViewport': True, 'clip': clip}
    return base64.b64decode(self.driver.execute_cdp_cmd('Page.captureScreenshot', shot)['data'])


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
  """A browser, closed afterwards."""
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = _chromium()
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
  with tempfile.TemporaryDirectory() as profile:
    for flag in (*FLAGS, f'--user-data-dir={profile}'):
      options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    try:
      yield Browser(driver)
    finally:
      driver.quit()


def make(workdir: Path) -> None:
  """Trains what the pages are of, each in its folder, or what is left of it."""
  import mtl_jax
  from mtl_jax import demo

  demo.run(workdir / 'demo')
  own = {'data.dir': str(workdir / 'demo' / 'data'), **SMALL}
  mtl_jax.study('demo', workdir / 'study', overrides={**own, **STUDY})
  mtl_jax.sweep('demo', workdir / 'sweep', overrides={**own, **SWEEP})


def shrunk(png: bytes) -> bytes:
  """The same picture; where it is large in 256 colours."""
  from PIL import Image

  if len(png) < MAX_BYTES:
    return png
  content = io.BytesIO()
  Image.open(io.BytesIO(png)).convert('RGB').quantize(256, dither=Image.Dither.NONE).save(content, 'png', optimize=True)
  return content.getvalue()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', type=Path, default=Path('build/screenshots'))
  workdir = parser.parse_args().workdir
  if lacks := missing():
    parser.error(lacks)
  make(workdir)
  with browser() as found:
    for page, picture, width, dark, height in PICTURES:
      found.open(workdir / page / 'report.html', width=width, dark=dark)
      (HERE / picture).parent.mkdir(exist_ok=True)
      (HERE / picture).write_bytes(shrunk(found.picture(height=height)))


if __name__ == '__main__':
  main()
