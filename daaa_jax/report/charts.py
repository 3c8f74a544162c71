"""Charts as SVG and pictures as JPEG, for an HTML page.

The text of a chart stays text, in the page's text colour. Curves use the colour-blind-safe palette
of Okabe and Ito, readable on light and dark pages.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageOps

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
NUMBERED = 10  # up to this many classes, scatter plots draw points as class numbers
_INK = "#010203"  # placeholder, replaced by the page's text colour
_WIDTH, _HEIGHT = 4.6, 2.6  # inches

Curve = tuple[Sequence[float], Sequence[float]]


def lines(name: str, curves: Mapping[str, Curve], x: str, y: str, percent: bool = False) -> Markup:
    """Curves over steps or rounds.

    Args:
      name: name of the chart, unique on the page.
      curves: x and y values, by label.
      x: label of the horizontal axis.
      y: label of the vertical axis.
      percent: whether y values are shares in [0, 1], shown in per cent.
    """
    canvas, axis = _canvas()
    axis.set_prop_cycle(color=3 * COLORS, linestyle=[s for s in ("-", "--", ":") for _ in COLORS])
    for label, (places, values) in curves.items():
        values = [100 * value for value in values] if percent else values
        marker = "o" if len(places) < 30 else None
        axis.plot(places, values, label=label, linewidth=1.4, marker=marker, markersize=3)
    axis.set(xlabel=x, ylabel=f"{y}, %" if percent else y)
    if all(float(place).is_integer() for places, _ in curves.values() for place in places):
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(curves) > 1 or y not in curves:
        _legend(axis)
    return _svg(canvas, name)


def bars(name: str, values: Mapping[str, float | None], x: str) -> Markup:
    """Horizontal bars of shares in [0, 1], shown in per cent; None is shown as `no images`."""
    canvas, axis = _canvas(height=max(1.2, 0.24 * len(values) + 0.6))
    labels = list(values)[::-1]
    shares = [100 * (values[label] or 0) for label in labels]
    axis.barh(range(len(labels)), shares, color=COLORS[0], height=0.7)
    for place, label in enumerate(labels):
        value = values[label]
        text = "no images" if value is None else f"{100 * value:.1f}"
        axis.text(shares[place] + 1, place, text, va="center", fontsize=8, color=_INK)
    axis.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axis.set(xlim=(0, 112), xlabel=x)
    return _svg(canvas, name)


def matrix(name: str, counts: np.ndarray, labels: Sequence[str], rows: str, columns: str) -> Markup:
    """A matrix of counts, shaded by the share of each row; up to 12 classes show the counts."""
    counts = np.asarray(counts, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(7.0, 2.6 + 0.3 * len(labels))
    canvas, axis = _canvas(width=side, height=side)
    axis.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    names = [_short(label) for label in labels]
    axis.set_xticks(range(len(labels)), names, rotation=90)
    axis.set_yticks(range(len(labels)), names)
    axis.set(xlabel=columns, ylabel=rows)
    if len(labels) <= 12:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                color = "black" if share > 0.5 else "white"
                text = f"{counts[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    return _svg(canvas, name)


def scatter(
    name: str, points: Mapping[str, np.ndarray], classes: Mapping[str, np.ndarray], title: str
) -> Markup:
    """A scatter plot, coloured by group.

    Args:
      name: name of the chart, unique on the page.
      points: `[N,2]`, by group.
      classes: class numbers `[N]`, by group; drawn as digits if there are at most ten classes.
      title: text below the plot.
    """
    canvas, axis = _canvas(height=_WIDTH)
    numbers = max(int(c.max(initial=0)) for c in classes.values()) < NUMBERED
    for (label, places), color in zip(points.items(), COLORS, strict=False):
        marks = classes[label] if numbers else np.full(len(places), -1)
        for mark in np.unique(marks):
            here = places[marks == mark]
            marker, size = (f"${mark}$", 22) if mark >= 0 else ("o", 8)
            axis.scatter(*here.T, s=size, c=color, marker=marker, linewidths=0, alpha=0.8)
        axis.scatter([], [], s=20, c=color, marker="o", linewidths=0, label=label)
    axis.set(xticks=[], yticks=[], xlabel=title)
    axis.spines[:].set_visible(False)
    _legend(axis)
    return _svg(canvas, name)


def _canvas(width: float = _WIDTH, height: float = _HEIGHT):
    # Imported here, as importing matplotlib takes most of a second.
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout="constrained")
    canvas.patch.set_alpha(0)
    axis = canvas.add_subplot()
    axis.patch.set_alpha(0)
    axis.tick_params(colors=_INK, labelsize=8)
    axis.xaxis.label.set_color(_INK)
    axis.yaxis.label.set_color(_INK)
    axis.spines[:].set_color(_INK)
    axis.spines[["top", "right"]].set_visible(False)
    return canvas, axis


def _legend(axis) -> None:
    """Adds a legend above the axes, where it hides nothing."""
    axis.legend(
        frameon=False,
        fontsize=8,
        labelcolor=_INK,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
    )


def _short(label: str) -> str:
    """Shortens a label, and escapes `$`, which would start a formula."""
    label = label if len(label) <= 22 else f"{label[:21]}…"
    return label.replace("$", r"\$")


def to_svg(canvas, salt: str) -> str:
    """A Matplotlib figure as SVG with text as text; the same for the same content and `salt`."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        canvas.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _svg(canvas, name: str) -> Markup:
    text = to_svg(canvas, name)
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Prefix ids, which other charts on the page use too.
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = text.replace("url(#", f"url(#{name}-")
    # Fill the available width, up to the width as drawn.
    width = re.findall(r'<svg[^>]*? width="([\d.]+)pt"', text)[0]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    style = f'style="width:100%;max-width:{float(width) * 4 / 3:.0f}px;height:auto"'
    return Markup(text.replace("<svg ", f'<svg role="img" {style} ', 1))


def compressed(png: bytes) -> str:
    """Converts a PNG to a JPEG in base64, see `jpeg`."""
    return jpeg(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")))


def jpeg(pixels: np.ndarray, least: int = 500, most: int = 1400) -> str:
    """Encodes uint8 pixels `[H,W,3]` as a JPEG in base64, `least` to `most` pixels wide."""
    image = Image.fromarray(pixels)
    if image.width < least:
        image = ImageOps.scale(image, -(-least // image.width), Image.Resampling.NEAREST)
    image.thumbnail((most, image.height), reducing_gap=None)
    content = io.BytesIO()
    image.save(content, "jpeg", quality=82)
    return base64.b64encode(content.getvalue()).decode()
