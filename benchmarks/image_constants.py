"""Makes fusion/encoders/image_constants.npz: what the image encoder knows of pictures, from synthetic ones alone.

    python -m benchmarks.image_constants        writes the file and prints its SHA-256, to be pinned in image.py

Draws 5,000 shapes from a seed, four pictures of each that differ in jitter, shading, texture and brightness, runs them
through the scattering of `fusion.encoders.image` and takes, for each of the 49 frequencies with W the covariance of its
81 numbers within shapes and T the total one,

    A = (W + r mean(W) I)^(-p/2)       A T A = U diag(b) U^T       directions A U diag(b)^(-q/2)

of which the FEATURES with the largest b of all frequencies are kept: whitened for what changes while a shape stays the
same, ordered by what differs between shapes. r is small against nothing: mean(W) is the mean eigenvalue over all
frequencies. p, q and r are no data of anyone's, but they were chosen on training pictures of Fashion-MNIST.

The file is committed, and its hash pinned, because eigenvectors differ between machines in their last bits. One
minute or two on one core; needs about 2 GB.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.encoders import image

Floats = NDArray[np.float64]

SEED = 1
SHAPES, PICTURES_EACH = 5_000, 4
PARTS = 5
JITTER = 0.06  # deviation of positions, sizes and angles between pictures of one shape
WHITENING, SPREAD, RIDGE = 0.75, 0.5, 1.0  # p, q, r
FEATURES = 1_000
AT_ONCE = 500


def main() -> None:
    """Write the file and say its hash."""
    formulas = filters() | samplings()
    blank = {
        "mean": np.zeros((image.FREQUENCIES, image.MAPS)),
        "directions": np.zeros((1, image.MAPS), dtype=np.int8),
        "frequency": np.zeros(1, dtype=np.uint8),
        "scale": np.ones(1),
    }
    taps = image.Constants.from_bytes(_npz(formulas | blank))
    pictures = silhouettes(np.random.default_rng(SEED), SHAPES, PICTURES_EACH)
    chunks = range(0, len(pictures), AT_ONCE)
    maps = np.concatenate([image.scattering(pictures[i : i + AT_ONCE], taps).astype(np.float32) for i in chunks])
    data = _npz(formulas | projections(maps))
    Path(image.__file__).with_name(image.CONSTANTS_FILE).write_bytes(data)
    print(f"{image.CONSTANTS_FILE}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


# --- formulas -------------------------------------------------------------------------------------------------


def filters() -> dict[str, NDArray[np.int32]]:
    """Taps of the waves, real parts then imaginary ones of 8 directions, as whole numbers."""
    return {"fine": _waves(0.8, 0.75 * np.pi, 7, 2.0**12), "coarse": _waves(1.6, 0.375 * np.pi, 12, 2.0**16)}


def _waves(deviation: float, frequency: float, size: int, units: float) -> NDArray[np.int32]:
    """(size^2, 16): Morlet waves, twice as long across as along, of mean 0 (J. Bruna, S. Mallat, 2013)."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    waves = []
    for angle in np.pi * np.arange(image.DIRECTIONS) / image.DIRECTIONS:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        envelope = np.exp(-(along**2 + across**2 / 4) / (2 * deviation**2))
        wave = envelope * np.exp(1j * frequency * along)
        waves.append(((wave - envelope * wave.sum() / envelope.sum()) / envelope.sum()).reshape(-1))
    taps = np.stack(waves, axis=1)
    whole = np.rint(units * np.concatenate([taps.real, taps.imag], axis=1)).astype(np.int32)
    if size % 2:  # the middle takes what rounding left of the mean
        whole[size * size // 2] -= whole.sum(axis=0)
    return whole


def samplings() -> dict[str, NDArray[np.int32]]:
    """Gaussian averages in units of 2^-8, and the cosines in units of 2^-5, along one side."""
    k = np.arange(image.GRID)
    cosines = np.cos(np.pi * (k[None, :] + 0.5) * k[:, None] / image.GRID)
    cosines /= np.sqrt((cosines**2).sum(axis=1, keepdims=True))
    return {
        "low_pixels": _averages(image.SIDE, image.GRID, 1.6),
        "low_halving": _averages(image.SIDE, image.HALF, 0.8),
        "low_half": _averages(image.HALF, image.GRID, 0.96),
        "cosines": np.rint(32.0 * cosines).astype(np.int32),
    }


def _averages(source: int, target: int, deviation: float) -> NDArray[np.int32]:
    """(target, source): around evenly spaced centers; what reaches over the border sees zeros there."""
    centers = (np.arange(target) + 0.5) * source / target - 0.5
    inside = np.exp(-((np.arange(source) - centers[:, None]) ** 2) / (2 * deviation**2))
    everywhere = np.exp(-((np.arange(-source, 2 * source) - centers[:, None]) ** 2) / (2 * deviation**2))
    return np.rint(256.0 * inside / everywhere.sum(axis=1, keepdims=True)).astype(np.int32)


# --- directions -----------------------------------------------------------------------------------------------


def projections(maps: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """mean, directions, frequency and scale from (n, 49, 81), whose rows come in groups of one shape."""
    mean = maps.mean(axis=0, dtype=np.float64)
    within, total = [], []
    for frequency in range(image.FREQUENCIES):
        rows = maps[:, frequency].astype(np.float64) - mean[frequency]
        groups = rows.reshape(-1, PICTURES_EACH, image.MAPS)
        inner = (groups - groups.mean(axis=1, keepdims=True)).reshape(len(rows), -1)
        total.append(rows.T @ rows / len(rows))
        within.append(inner.T @ inner / (len(rows) * (PICTURES_EACH - 1) / PICTURES_EACH))
    ridge = RIDGE * float(np.mean([np.trace(one) / image.MAPS for one in within]))
    values, vectors = zip(*[_whitened(w, t, ridge) for w, t in zip(within, total, strict=True)], strict=True)
    order = np.argsort(-np.concatenate(values), kind="stable")[:FEATURES]
    directions = np.concatenate([one.T for one in vectors])[order]
    largest = np.abs(directions).max(axis=1)
    return {
        "mean": np.rint(mean),
        "directions": np.rint(127.0 * directions / largest[:, None]).astype(np.int8),
        "frequency": (order // image.MAPS).astype(np.uint8),
        "scale": largest / 127.0,
    }


def _whitened(within: Floats, total: Floats, ridge: float) -> tuple[Floats, Floats]:
    """b (81,) and the directions (81, 81), as columns, of one frequency."""
    values, vectors = np.linalg.eigh(within)
    root = (vectors * (values + ridge) ** (-WHITENING / 2)) @ vectors.T
    between, turned = np.linalg.eigh(root @ total @ root)
    return between, root @ turned * np.maximum(between, np.finfo(np.float64).tiny) ** (-SPREAD / 2)


# --- synthetic pictures ---------------------------------------------------------------------------------------


def silhouettes(rng: np.random.Generator, shapes: int, each: int) -> NDArray[np.uint8]:
    """(shapes * each, 28, 28): light things on black, made of one to five soft-edged parts, often mirrored.

    A part is a tapered, turned superellipse; later parts cover earlier ones, and a quarter of them are holes. The
    pictures of a shape follow each other.
    """
    draw = Draws(rng, shapes, each)
    y, x = _grid(draw)
    mirrored = draw.of_shape() < 0.6
    brightness = rng.uniform(0.25, 1.0, shapes * each)
    picture = np.zeros((shapes * each, image.SIDE, image.SIDE))
    for part in range(PARTS):
        cover, shade = _part(draw, x, y, mirrored, brightness, first=part == 0)
        picture = picture * (1.0 - cover) + cover * shade
    picture *= 1.0 + _grain(draw)
    picture = np.clip(picture, 0.0, 1.0) ** _wide(rng.uniform(0.6, 1.4, len(picture)))
    return np.rint(255.0 * picture).astype(np.uint8)


class Draws:
    """Random numbers, (n,) each: the same for all pictures of a shape, or different."""

    def __init__(self, rng: np.random.Generator, shapes: int, each: int) -> None:
        self.rng, self.shapes, self.each = rng, shapes, each

    def of_shape(self, low: float = 0.0, high: float = 1.0) -> Floats:
        return np.repeat(self.rng.uniform(low, high, self.shapes), self.each)

    def of_picture(self, low: float = 0.0, high: float = 1.0) -> Floats:
        return self.rng.uniform(low, high, self.shapes * self.each)

    def jitter(self, deviation: float = JITTER) -> Floats:
        return self.rng.normal(0.0, deviation, self.shapes * self.each)


def _wide(values: Floats) -> Floats:
    return values[:, None, None]


def _grid(draw: Draws) -> tuple[Floats, Floats]:
    """y and x of all pixels, -1 to 1, stretched, sheared and shifted a little in each picture."""
    line = (np.arange(image.SIDE) + 0.5) / image.SIDE * 2.0 - 1.0
    y, x = np.meshgrid(line, line, indexing="ij")
    sheared = x * _wide(1.0 + draw.jitter()) + y * _wide(draw.jitter()) + _wide(draw.jitter())
    return y * _wide(1.0 + draw.jitter()) + _wide(draw.jitter()), sheared


def _part(
    draw: Draws, x: Floats, y: Floats, mirrored: NDArray[np.bool_], brightness: Floats, *, first: bool
) -> tuple[Floats, Floats]:
    """How much a part covers each pixel, and how light it is there."""
    there = np.ones(len(x)) if first else (draw.of_shape() < 0.55).astype(np.float64)
    middle = mirrored & (draw.of_shape() < 0.4)
    center_x = np.where(middle, 0.0, 0.0 if first else draw.of_shape(-0.75, 0.75)) + draw.jitter()
    center_y = (draw.of_shape(-0.2, 0.2) if first else draw.of_shape(-0.8, 0.8)) + draw.jitter()
    width = (draw.of_shape(0.3, 0.95) if first else draw.of_shape(0.06, 0.5)) * np.exp(draw.jitter())
    height = (draw.of_shape(0.35, 0.95) if first else draw.of_shape(0.06, 0.6)) * np.exp(draw.jitter())
    turn = draw.of_shape(-0.35, 0.35) if first else draw.of_shape(-1.6, 1.6)
    turn = np.where(middle | (mirrored & first), 0.0, turn) + draw.jitter(2 * JITTER)
    twice = mirrored & (np.abs(center_x) > 0.1)  # a pair, left and right
    away_x = np.where(_wide(twice), np.abs(x), x) - _wide(np.where(twice, np.abs(center_x), center_x))
    away_y = y - _wide(center_y)
    across = away_x * _wide(np.cos(turn)) + away_y * _wide(np.sin(turn))
    along = away_y * _wide(np.cos(turn)) - away_x * _wide(np.sin(turn))
    u = across / (_wide(width) * np.clip(1.0 + _wide(draw.of_shape(-0.6, 0.6)) * along / _wide(height), 0.15, 2.0))
    v = along / _wide(height)
    power = _wide(draw.of_shape(1.2, 6.0))
    radius = (np.abs(u) ** power + np.abs(v) ** power) ** (1.0 / power)
    cover = np.clip((1.0 - radius) * _wide(np.minimum(width, height)) * image.SIDE / 2 + 0.5, 0.0, 1.0) * _wide(there)
    hole = np.zeros(len(x), dtype=np.bool_) if first else draw.of_shape() < 0.25
    light = np.clip(brightness * (1.0 + draw.jitter(0.15) * (draw.of_picture() < 0.6)), 0.05, 1.0)
    shade = _wide(np.where(hole, 0.0, light)) * _stripes(draw, x, y) * _shading(draw, u, v, radius)
    return cover, np.clip(shade, 0.0, 1.0)


def _stripes(draw: Draws, x: Floats, y: Floats) -> Floats:
    """Waves of light on a third of the parts, mostly upright or level."""
    angle = np.pi / 2 * np.floor(draw.of_picture(0.0, 3.0))
    angle = np.where(angle > 3.0, draw.of_picture(0.0, np.pi), angle)
    strength = draw.of_picture(0.0, 0.4) * (draw.of_picture() < 0.35)
    place = x * _wide(np.cos(angle)) + y * _wide(np.sin(angle))
    return 1.0 + _wide(strength) * np.sin(
        _wide(draw.of_picture(2.0, 11.0)) * np.pi * place + _wide(draw.of_picture(0.0, 6.3))
    )


def _shading(draw: Draws, u: Floats, v: Floats, radius: Floats) -> Floats:
    """A slope of light, and rims that are darker on half of the parts."""
    slope = 1.0 + _wide(draw.jitter(0.15)) * u + _wide(draw.jitter(0.12)) * v
    rim = draw.of_picture(0.0, 0.35) * (draw.of_picture() < 0.5)
    return slope * (1.0 - _wide(rim) * np.clip(radius, 0.0, 1.0) ** 4)


def _grain(draw: Draws) -> Floats:
    """Noise on most pictures, of single pixels or of neighbors alike."""
    grain = draw.rng.normal(0.0, 1.0, (draw.shapes * draw.each, image.SIDE, image.SIDE))
    soft = (grain + np.roll(grain, 1, 1) + np.roll(grain, 1, 2) + np.roll(grain, (1, 1), (1, 2))) / 2.0
    strength = draw.of_picture(0.0, 0.25) * (draw.of_picture() < 0.8)
    return _wide(strength) * np.where(_wide(draw.of_picture() < 0.5), soft, grain)


if __name__ == "__main__":
    main()
