"""The entry point of the command line, for `mtl-jax VERB` and `python -m mtl_jax VERB`."""

import os
import signal
import sys
from typing import NoReturn

from mtl_jax.platform import huge_pages

TRAINING = ('affinity', 'demo', 'eval', 'predict', 'study', 'sweep', 'train')


def main() -> int:
  """`cli.main`; a signal that comes while that is imported ends the process with 75, as it does later."""
  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, _leave)
  if sys.argv[1:2] and sys.argv[1] in TRAINING:
    huge_pages.restart_if_wanted()
  from mtl_jax import cli

  return cli.main()


def _leave(number: int, frame: object) -> NoReturn:
  del number, frame
  os.write(2, b'mtl-jax: interrupted; the same command starts again\n')
  os._exit(75)


if __name__ == '__main__':
  sys.exit(main())
