"""Renders the Jinja2 templates of pages and model cards."""

from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Renders a file of the folder `templates`; values are escaped in HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("daaa_jax.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(**values)
