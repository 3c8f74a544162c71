"""Grids of images, as PNG files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from daaa_jax.runtime import files


def grid(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Arranges images in rows and columns on a white background.

    Args:
      images: `[rows,columns,H,W,3]` in [-1,1].
      gap: pixels between two images.

    Returns:
      uint8 `[rows*(H+gap)+gap, columns*(W+gap)+gap, 3]`.
    """
    rows, columns, height, width, _ = images.shape
    pixels = np.clip(np.round((images + 1) * 127.5), 0, 255).astype(np.uint8)
    page = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            page[top : top + height, left : left + width] = pixels[row, column]
    return page


def write_png(path: Path, pixels: np.ndarray, scale: int = 2) -> None:
    """Writes uint8 `[H,W,3]` pixels atomically, enlarged `scale` times in both directions."""
    content = io.BytesIO()
    enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(enlarged).save(content, format="png")
    files.write_bytes(path, content.getvalue())
