"""Configurations that come with the package; `mtl-jax train --config NAME` takes them by name, and so does Python."""
