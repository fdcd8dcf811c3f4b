"""`python -m mtl_jax VERB` is `mtl-jax VERB`."""

import sys

from mtl_jax.cli import main

if __name__ == '__main__':
  sys.exit(main())
