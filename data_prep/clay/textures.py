"""Square tiles of linear RGB for grounds and walls, [N, N, 3] float32 in [0, 1]; the same every time."""

from __future__ import annotations

import functools
import math

import numpy as np

from data_prep.clay.fields import Array

RGB = tuple[float, float, float]
_SIZE = 192


def _noise(seed: int, cells: int, *, size: int = _SIZE) -> Array:
    """Smooth value noise in [0, 1] that repeats at the tile's borders, [size, size]."""
    knots = np.random.RandomState(seed).rand(cells, cells)
    at = np.arange(size) * cells / size
    low = at.astype(int)
    weight = at - low
    weight = weight * weight * (3 - 2 * weight)
    high = (low + 1) % cells
    rows = knots[low] * (1 - weight)[:, None] + knots[high] * weight[:, None]
    columns: Array = rows[:, low] * (1 - weight) + rows[:, high] * weight
    return columns


def _shaded(color: RGB, brightness: Array) -> Array:
    return np.clip(brightness[..., None] * np.array(color), 0, 0.95).astype(np.float32)


@functools.cache
def mottled(color: RGB, *, contrast: float, seed: int) -> Array:
    """Soft lighter and darker patches of one colour: grass, sand, snow, rock."""
    cloud = 0.6 * _noise(seed, 12) + 0.4 * _noise(seed + 1, 48) - 0.5
    return _shaded(color, 1 + 2 * contrast * cloud)


@functools.cache
def dotted(color: RGB, dots: tuple[RGB, ...], *, count: int, radius: float, seed: int) -> Array:
    """Round dots of several colours, `radius` in shares of the tile, on a mottled ground."""
    tile, rng = mottled(color, contrast=0.25, seed=seed).copy(), np.random.RandomState(seed)
    rows, columns = np.mgrid[:_SIZE, :_SIZE] / _SIZE
    for index in range(count):
        away = [np.abs(axis - rng.rand()) for axis in (rows, columns)]
        apart = np.hypot(*(np.minimum(a, 1 - a) for a in away))
        tile[apart < radius * rng.uniform(0.6, 1.2)] = dots[index % len(dots)]
    return tile


@functools.cache
def planks(color: RGB) -> Array:
    """Four floorboards, their seams and their grain."""
    rng, tile = np.random.RandomState(5), np.ones((_SIZE, _SIZE))
    board = _SIZE // 4
    across, along = np.linspace(0, 9, board)[:, None], np.linspace(0, 2 * math.pi, _SIZE)
    for index in range(4):
        rows = slice(board * index, board * index + board)
        tile[rows] = rng.uniform(0.8, 1.2) * (1 + 0.06 * np.sin(across + 0.7 * np.sin(along)))
        tile[board * index : board * index + 4] = 0.45
    return _shaded(color, tile)


@functools.cache
def checkered(first: RGB, second: RGB) -> Array:
    """Two by two square tiles."""
    half = np.arange(_SIZE) < _SIZE // 2
    return np.where((half[:, None] ^ half)[..., None], first, second).astype(np.float32)


@functools.cache
def tiled(color: RGB, *, count: int, joint: float = 0.6) -> Array:
    """`count` × `count` wall tiles with darker joints."""
    cell = _SIZE // count
    at = np.arange(_SIZE) % cell < max(2, cell // 12)
    return _shaded(color, np.where(at[:, None] | at, joint, 1.0))


@functools.cache
def zebra() -> Array:
    """Asphalt with the white bars of a crossing, which run across the tile's middle."""
    tile = mottled((0.07, 0.07, 0.075), contrast=0.2, seed=21).copy()
    bars = (np.arange(_SIZE) * 8 // _SIZE) % 2 == 0
    middle = np.abs(np.arange(_SIZE) / _SIZE - 0.5) < 0.2
    tile[middle[:, None] & bars] = (0.75, 0.75, 0.72)
    return tile


@functools.cache
def windows() -> Array:
    """A house front: dark panes in a pale wall."""
    at = np.arange(_SIZE) * 4 / _SIZE % 1
    pane = (at > 0.25) & (at < 0.75)
    inside = (pane[:, None] & pane)[..., None]
    return np.where(inside, (0.08, 0.11, 0.16), (0.55, 0.42, 0.33)).astype(np.float32)


@functools.cache
def books() -> Array:
    """Three shelves of upright books."""
    rng = np.random.RandomState(8)
    tile = np.full((_SIZE, _SIZE, 3), (0.16, 0.08, 0.03), np.float32)
    colors = [(0.45, 0.05, 0.04), (0.08, 0.2, 0.4), (0.1, 0.3, 0.12), (0.6, 0.5, 0.3)]
    colors += [(0.35, 0.2, 0.07), (0.2, 0.08, 0.25)]
    shelf = _SIZE // 3
    for row in range(3):
        column = 0
        while column < _SIZE:
            width, height = rng.randint(7, 14), rng.randint(int(shelf * 0.6), int(shelf * 0.85))
            rows = slice(row * shelf + 6, row * shelf + 6 + height)
            tile[rows, column + 1 : column + width] = colors[rng.randint(len(colors))]
            column += width
    return tile
