"""The eight inputs that every exactness test uses: real, random, extreme. All are finite."""

from pathlib import Path

import numpy as np

from . import images

HUGE = np.float32(1e30)


def eight(shape: list[int], batch: int, cache: Path) -> dict[str, np.ndarray]:
    """Eight named float32 inputs of `[batch, *shape]`; the rows of a batch differ."""
    random = np.random.default_rng([batch, *shape])
    full = [batch, *shape]
    real = _real(shape, 2 * batch, cache)
    board = np.indices(full).sum(axis=0) % 2
    return {
        "real": real[:batch],
        "real, others": real[batch:],
        "normal": random.standard_normal(full, np.float32),
        "wide normal": (random.standard_normal(full, np.float32) * np.float32(10)),
        "zeros": np.zeros(full, np.float32),
        "lowest and highest": np.stack([np.full(shape, 1 if row % 2 else -1, np.float32) for row in range(batch)]),
        "checkerboard": np.where(board, np.float32(1), np.float32(-1)).astype(np.float32),
        "huge": np.where(random.random(full) < 0.5, HUGE, -HUGE).astype(np.float32),
    }


def _real(shape: list[int], count: int, cache: Path) -> np.ndarray:
    if shape == [1, 28, 28]:
        return images.digits(cache)[0][:: 5000 // count][:count]
    return np.stack([images.prepared(photo.image) for photo in images.photos(cache)[:count]])
