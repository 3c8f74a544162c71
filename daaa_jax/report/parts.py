"""What the sections of a page are made of: curves of logged figures, charts, tables, pictures."""

import base64
import html
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from daaa_jax.report import charts

_MOST_POINTS = 400  # of a curve; more are averaged
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --faint: #666; --paper: #fff; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --faint: #a0a0a0; --paper: #16181b; --line: #3a3d42; }
}
@media print { :root { --ink: #000; --faint: #444; --paper: #fff; --line: #ccc; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, figcaption, .faint { max-width: 44rem; } figcaption, .faint { color: var(--faint);
  font-size: .9rem; }
figure { margin: 1rem 0; break-inside: avoid; } img { max-width: 100%; height: auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 0 1.5rem; align-items: start; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 1rem 0; padding: 0;
  list-style: none; }
.figures b { display: block; font-size: 1.6rem; line-height: 1.2; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
summary { cursor: pointer; } a { color: inherit; }
.drawn img { background: #fff; }
"""


def document(title: str, sections: Sequence[str]) -> str:
    """A page of sections, HTML; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, sections))
        + "\n</body>\n</html>\n"
    )


def curve(lines: Sequence[Mapping], name: str, x: str = "") -> charts.Curve | None:
    """Where a figure is known, against the round's number, or against `x`; long ones averaged."""
    points = [
        (line[x] if x else number, line[name])
        for number, line in enumerate(lines, start=1)
        if line.get(name) is not None
    ]
    if not points:
        return None
    several = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[first : first + several] for first in range(0, len(points), several)]
    return (
        [group[-1][0] for group in groups],
        [float(np.mean([value for _, value in group])) for group in groups],
    )


def chart(draw, name: str, curves: Mapping[str, charts.Curve | None], *arguments, **options) -> str:
    """A figure; empty where there is no curve."""
    known = {label: curve for label, curve in curves.items() if curve is not None}
    return f"<figure>{draw(name, known, *arguments, **options)}</figure>" if known else ""


def table(rows: Iterable[tuple[str, Any]]) -> str:
    inside = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return f"<div class=wide><table>{inside}</table></div>"


def flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    rows = []
    for name, item in value.items():
        rows += flat(item, f"{prefix}.{name}" if prefix else name)
    return rows


def percent(share: float | None) -> str:
    return "no labels" if share is None else f"{100 * share:.1f} %"


def picture(jpeg: str, alternative: str, caption: str) -> str:
    """A figure of a JPEG in base64; neither text comes from data."""
    return (
        f'<figure><img alt="{html.escape(alternative)}" src="data:image/jpeg;base64,{jpeg}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def compressed(png: bytes) -> str:
    """A PNG as a JPEG in base64, see `jpeg`."""
    return jpeg(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))


def jpeg(pixels: np.ndarray, least: int = 500, most: int = 1400) -> str:
    """uint8 pixels `[H,W,3]` as a JPEG in base64, brought to a width that a page has room for."""
    image = Image.fromarray(pixels)
    if image.width < least:
        factor = -(-least // image.width)
        size = (factor * image.width, factor * image.height)
        image = image.resize(size, Image.Resampling.NEAREST)
    if image.width > most:
        image = image.resize((most, round(image.height * most / image.width)))
    content = io.BytesIO()
    image.save(content, "jpeg", quality=82)
    return base64.b64encode(content.getvalue()).decode()
