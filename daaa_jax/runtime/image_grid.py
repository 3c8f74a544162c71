"""Grids of images, as PNG files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from daaa_jax.runtime import files


def grid(images: np.ndarray, gap: int = 2) -> np.ndarray:
    """Arranges images in rows and columns on a white background.

    Args:
      images: uint8 `[rows,columns,H,W,3]`.
      gap: pixels between two images.

    Returns:
      uint8 `[rows*(H+gap)+gap, columns*(W+gap)+gap, 3]`.
    """
    rows, columns, height, width, _ = images.shape
    framed = np.pad(images, ((0, 0), (0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=255)
    page = framed.swapaxes(1, 2).reshape(rows * (height + gap), columns * (width + gap), 3)
    return np.pad(page, ((0, gap), (0, gap), (0, 0)), constant_values=255)


def write_png(path: Path, pixels: np.ndarray, scale: int = 2) -> None:
    """Writes uint8 `[H,W,3]` pixels atomically, enlarged `scale` times in both directions."""
    content = io.BytesIO()
    enlarged = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(enlarged).save(content, format="png")
    files.write_bytes(path, content.getvalue())
