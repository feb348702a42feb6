"""Images as parts of a picture."""

import numpy as np

from flowcli.plots.style import Array, Limits


def mosaic(images: Array, side: int, low: float, high: float) -> Array:
    """Images (N, C, H, W) on side^2 places of one picture (.., .., 3) in [0, 1]; free places stay white."""
    height, width = images.shape[2:]
    shades = np.clip((images - low) / (high - low), 0, 1)
    gap = max(1, round(0.06 * height)) if side > 1 else 0
    canvas = np.ones((side * (height + gap) - gap, side * (width + gap) - gap, 3))
    for i in range(len(images)):
        top, left = (i // side) * (height + gap), (i % side) * (width + gap)
        canvas[top : top + height, left : left + width] = np.moveaxis(shades[i], 0, -1)  # grey spreads to 3 channels
    return canvas


def grey_scale(images: Array) -> Limits:
    """Black and white of the data; the extremes themselves, as pixels have few outliers."""
    finite = images[np.isfinite(images)]
    if len(finite) == 0 or finite.min() == finite.max():
        return 0.0, 1.0
    return float(finite.min()), float(finite.max())
