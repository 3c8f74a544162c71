"""Pages and model cards from their templates, with names from the data as text."""

from typing import Any

import jinja2


def render(name: str, **values: Any) -> str:
    """A template of the folder `templates`, filled; HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daaa_jax.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(**values)
