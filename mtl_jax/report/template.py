"""Fills the templates of this folder: `base.html` is what all pages have in common."""

from typing import Any

from mtl_jax.report import charts


def render(template: str, **values: Any) -> str:
  """A page's HTML. Every value is escaped but for what `drawing` gave."""
  import jinja2

  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('mtl_jax.report', '.'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(**values)


def drawing(figure: Any) -> Any:
  """A Matplotlib figure as HTML; the names in it were escaped when it was drawn."""
  import markupsafe

  return markupsafe.Markup(charts.to_svg(figure))
