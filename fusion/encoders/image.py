"""Pictures -> feature vectors: wavelet scattering in whole numbers, then a projection learned on synthetic pictures.

A picture is made grey and 28 x 28 where it is not. Scattering (J. Bruna, S. Mallat, "Invariant scattering convolution
networks", 2013) takes averages of the moduli of oriented waves, twice over, on a 7 x 7 grid: 81 maps that move little
when a shape shifts or bends,

    S0 = x * low    S1 = |x * psi_j| * low, two scales of 8 directions    S2 = ||x * psi_0| * psi_1| * low, 8 x 8

Square roots tame their tails, a cosine transform on the grid (7 x 7 frequencies) separates coarse from fine, and the 81
numbers of each frequency are centered and projected onto the directions in which *different* shapes differ most while
pictures of the *same* shape differ little. Mean and directions come from synthetic pictures, silhouettes drawn from a
seed, never from anybody's data: `benchmarks/image_constants.py` makes them. They come ordered, so that a task takes as
many `features` as it wants. The result is brought to unit length:

    x = [sqrt(1 - beta^2) z / ||z|| ; beta]

Exactness. The vector of a row must be the same bits in any batch and on any machine, which floating-point sums are
not. So pixels, filters and projections are whole numbers and every sum of products stays in the range where the
arithmetic is exact (2^24 in float32 for the waves, 2^53 in float64 for the rest), whatever the order of summation;
between the sums stand element-wise square roots and divisions, which IEEE 754 rounds one way only. The bounds are
checked when the constants are loaded.
"""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fusion.errors import TaskError
from fusion.task import ImageColumn, ImageEncoder, Task

if TYPE_CHECKING:
    from fusion.dataset import Batch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SIDE = 28  # pixels of a side that scattering takes
HALF, GRID = 14, 7  # sides after one and two halvings
MAPS, FREQUENCIES = 81, GRID * GRID
DIRECTIONS = 8

CONSTANTS_FILE = "image_constants.npz"
CONSTANTS_SHA256 = ""

WAVE_BITS = 11  # moduli of waves on pixels are kept in units of 2^-12 of the largest one possible: 0 … 4095
CHUNK = 128  # rows encoded at once: keeps what lies between two steps in the cache


@dataclass(frozen=True)
class Constants:
    """What the encoding is made of; whole numbers in float32 or float64, in the shapes that products take."""

    fine: NDArray[np.float32]  # (49, 16): 7 x 7 taps of psi_0, 8 real parts and 8 imaginary ones, in units of 2^-12
    coarse: NDArray[np.float32]  # (144, 16): 12 x 12 taps of psi_1, in units of 2^-16
    mean: Floats  # (49, 81): of the maps at each frequency
    directions: NDArray[np.int8]  # (F, 81)
    frequency: NDArray[np.uint8]  # (F,): the frequency that each direction takes its 81 numbers from
    scale: Floats  # (F,)

    @property
    def features(self) -> int:
        """F: the most features that a task can have."""
        return len(self.frequency)

    @classmethod
    def from_bytes(cls, data: bytes) -> Constants:
        """The constants in an .npz file, checked for the bounds that keep sums exact."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            constants = cls(
                fine=arrays["fine"].astype(np.float32),
                coarse=arrays["coarse"].astype(np.float32),
                mean=arrays["mean"].astype(np.float64),
                directions=arrays["directions"],
                frequency=arrays["frequency"],
                scale=arrays["scale"].astype(np.float64),
            )
        constants.check()
        return constants

    def check(self) -> None:
        """Every partial sum of a product must be a whole number that its type holds."""
        fits = (
            np.abs(self.fine).sum(axis=0).max() * LARGEST_MODULUS < 2**24
            and np.abs(self.coarse).sum(axis=0).max() * 255 < 2**24
            and MAPS * 127 * (np.abs(self.mean).max() + LARGEST_FREQUENCY) < 2**53
        )
        if not fits:
            raise ValueError("the constants of the image encoder are too large for exact sums")


@cache
def constants() -> Constants:
    """The constants that come with the program; ValueError where the file is not the one this code was made for."""
    data = resources.files("fusion.encoders").joinpath(CONSTANTS_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != CONSTANTS_SHA256:
        raise ValueError(f"{CONSTANTS_FILE} is damaged; install the program again")
    return Constants.from_bytes(data)


# --- matrices that formulas give -----------------------------------------------------------------------------


def gaussian_sampling(source: int, target: int, deviation: float) -> Ints:
    """(target, source): Gaussian averages around evenly spaced centers; each row adds up to about 2^8.

    A center so near the border that its average reaches over it sees zeros there.
    """
    spacing = source / target
    centers = (np.arange(target) + 0.5) * spacing - 0.5
    distance = np.arange(source)[None, :] - centers[:, None]
    inside = np.exp(-(distance**2) / (2.0 * deviation**2))
    reach = np.arange(-4 * source, 5 * source)[None, :] - centers[:, None]
    whole = np.exp(-(reach**2) / (2.0 * deviation**2)).sum(axis=1, keepdims=True)
    return np.asarray(np.rint(256.0 * inside / whole), dtype=np.int64)


def area_sampling(source: int) -> Ints:
    """(28, source): averages of the pixels under each of 28 equal stretches, in units of 2^-12; 28: the identity."""
    edges = np.arange(SIDE + 1) * source
    pixel = np.arange(source) * SIDE
    left = np.maximum(edges[:-1, None], pixel[None, :])
    right = np.minimum(edges[1:, None], pixel[None, :] + SIDE)
    overlap = np.maximum(right - left, 0)  # in units of 1/28 of a pixel, exactly
    return np.asarray(overlap * 4_096 // source)


def _both_ways(matrix: Ints) -> Floats:
    """(source^2, target^2): the matrix along rows and columns of a flattened square."""
    return np.kron(matrix, matrix).T.astype(np.float64)


LOW_PIXELS = _both_ways(gaussian_sampling(SIDE, GRID, 1.6))  # for S0
LOW_HALVING = _both_ways(gaussian_sampling(SIDE, HALF, 0.8))  # psi_0 moduli, before the second wave
LOW_HALF = _both_ways(gaussian_sampling(HALF, GRID, 0.96))  # for S1 and S2


def _cosines() -> Floats:
    """(49, 49): the two-dimensional cosine transform of the grid (DCT-II), in units of 2^-10; columns: frequencies."""
    k = np.arange(GRID)
    rows = np.cos(np.pi * (k[None, :] + 0.5) * k[:, None] / GRID)
    rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return _both_ways(np.rint(32.0 * rows).astype(np.int64))


COSINES = _cosines()
LARGEST_MODULUS = 4_096  # of a wave, in units of 1/4080 of white
LARGEST_FREQUENCY = float(np.abs(COSINES).sum(axis=0).max()) * math.isqrt(LARGEST_MODULUS * 2**17)


# --- scattering ----------------------------------------------------------------------------------------------


def scattering(pixels: NDArray[np.uint8], taps: Constants) -> Floats:
    """(n, 49, 81) whole numbers from (n, 28, 28) bytes: the 81 maps, rooted, at the 49 frequencies."""
    n = len(pixels)
    flat = pixels.reshape(n, SIDE * SIDE).astype(np.float64)
    first = _moduli(pixels, taps.fine, 7, 3, 1, 2.0**-8)  # (n, 784, 8)
    halved = np.rint(_across(first, LOW_HALVING) * 2.0**-16)  # (n, 8, 196)
    second = _moduli(halved.reshape(-1, HALF, HALF), taps.fine, 7, 3, 1, 2.0**-12)  # (8 n, 196, 8)
    first_coarse = _moduli(pixels, taps.coarse, 12, 5, 2, 2.0**-12)  # (n, 196, 8)
    maps = np.concatenate(
        [
            (16.0 * flat @ LOW_PIXELS)[:, None, :],
            halved @ LOW_HALF,
            _across(first_coarse, LOW_HALF),
            _across(second, LOW_HALF).reshape(n, DIRECTIONS * DIRECTIONS, FREQUENCIES),
        ],
        axis=1,
    )
    return (np.rint(np.sqrt(maps)) @ COSINES).transpose(0, 2, 1)


def _moduli(
    maps: NDArray[np.generic], taps: NDArray[np.float32], size: int, border: int, stride: int, unit: float
) -> Floats:
    """(n, positions, 8): the moduli of 8 waves at every `stride`-th position of (n, side, side), zeros around it."""
    padded = np.pad(maps.astype(np.float32), ((0, 0), (border, border), (border, border)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    responses = (windows.reshape(-1, size * size) @ taps).astype(np.float64)
    real, imaginary = responses[:, :DIRECTIONS], responses[:, DIRECTIONS:]
    moduli = np.rint(np.sqrt(real * real + imaginary * imaginary) * unit)
    return moduli.reshape(len(maps), -1, DIRECTIONS)


def _across(maps: Floats, low: Floats) -> Floats:
    """(n, maps, target) averages of (n, source, maps)."""
    return np.ascontiguousarray(maps.transpose(0, 2, 1)) @ low
