"""Presets: configurations that come with the package, named in `mtl-jax train --config NAME` and in Python."""
