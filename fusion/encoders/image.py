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
from functools import cache, cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
CONSTANTS_SHA256 = "beb69eb97687f2cf292b21e1c3166142587b61ca0b5425d4bfa22f1a7de5df6f"

LUMA = (77, 150, 29)
AREA_UNITS = 4_096
SMALLEST_NORM = 1e-9  # far below that of any picture: the directions are scaled to give norms near 1
WHITE = 4_080  # maps count in units of 1/4080 of a white pixel
CHUNK = 64  # rows encoded at once: what lies between two steps stays in the cache


@dataclass(frozen=True)
class Window:
    """The squares of `size` pixels a side that waves look at, every `stride`-th, `border` zeros around the picture."""

    size: int
    border: int
    stride: int


FINE, COARSE = Window(7, 3, 1), Window(12, 5, 2)


@dataclass(frozen=True)
class Constants:
    """What the encoding is made of: whole numbers (but `scale`), in the types and shapes that products take."""

    fine: NDArray[np.float32]  # (49, 16): 7 x 7 taps of psi_0, 8 real parts, 8 imaginary ones, in units of 2^-12
    coarse: NDArray[np.float32]  # (144, 16): 12 x 12 taps of psi_1, in units of 2^-16
    low_pixels: Floats  # (784, 49): Gaussian averages, from pixels to the grid, in units of 2^-16
    low_halving: Floats  # (784, 196): from pixels to half their number a side
    low_half: Floats  # (196, 49): from there to the grid
    cosines: Floats  # (49, 49): from the grid to its frequencies (DCT-II), in units of 2^-10
    mean: Floats  # (49, 81): of the maps at each frequency
    directions: Floats  # (F, 81), within +-127
    frequency: NDArray[np.uint8]  # (F,): the frequency that each direction takes its 81 numbers from
    scale: Floats  # (F,)

    @property
    def features(self) -> int:
        """F: the most features that a task can have."""
        return len(self.frequency)

    @classmethod
    def from_bytes(cls, data: bytes) -> Constants:
        """The constants in an .npz file, checked; ValueError where sums would not be exact."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            constants = cls(
                fine=arrays["fine"].astype(np.float32),
                coarse=arrays["coarse"].astype(np.float32),
                low_pixels=both_ways(arrays["low_pixels"]),
                low_halving=both_ways(arrays["low_halving"]),
                low_half=both_ways(arrays["low_half"]),
                cosines=both_ways(arrays["cosines"]),
                mean=arrays["mean"].astype(np.float64),
                directions=arrays["directions"].astype(np.float64),
                frequency=arrays["frequency"],
                scale=arrays["scale"].astype(np.float64),
            )
        constants.check()
        return constants

    def check(self) -> None:
        """Every partial sum of a product must be a whole number that its type holds: 2^24 in float32, 2^53 in float64.

        A wave multiplies by at most the sum of the absolute values of its complex taps, an average by about 1.
        """
        fine, coarse = _gain(self.fine) * 2.0**-12, _gain(self.coarse) * 2.0**-16
        average = max(low.sum(axis=0).max() for low in (self.low_pixels, self.low_halving, self.low_half)) * 2.0**-16
        halved = WHITE * fine * average + 1.0  # the largest entries of what the second waves see, and of maps
        largest = average * max(WHITE, halved, halved * fine + 1.0, WHITE * coarse + 1.0)
        frequency = np.abs(self.cosines).sum(axis=0).max() * math.sqrt(largest * 2.0**16)
        exact = (
            np.abs(self.fine).sum(axis=0).max() * max(255.0, halved) < 2**24
            and np.abs(self.coarse).sum(axis=0).max() * 255.0 < 2**24
            and MAPS * 127 * (frequency + np.abs(self.mean).max()) < 2**53
        )
        if not exact:
            raise ValueError("the constants of the image encoder are too large for exact sums")


def _gain(taps: NDArray[np.float32]) -> float:
    """The most that a wave of these taps multiplies by: the largest sum of moduli of its complex taps."""
    return float(np.hypot(taps[:, :DIRECTIONS], taps[:, DIRECTIONS:]).sum(axis=0).max())


@cache
def constants() -> Constants:
    """The constants that come with the program; ValueError where the file is not the one this code was made for."""
    data = resources.files("fusion.encoders").joinpath(CONSTANTS_FILE).read_bytes()
    if hashlib.sha256(data).hexdigest() != CONSTANTS_SHA256:
        raise ValueError(f"{CONSTANTS_FILE} is damaged; install the program again")
    return Constants.from_bytes(data)


def both_ways(matrix: NDArray[np.integer]) -> Floats:
    """(source^2, target^2): a (target, source) matrix along the rows and the columns of a flattened square."""
    whole = matrix.astype(np.float64)
    return np.asarray(np.kron(whole, whole).T, dtype=np.float64)


# --- pictures to 28 x 28 bytes --------------------------------------------------------------------------------


def grey(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, h, w) from (n, h, w, 1) or (n, h, w, 3): the luma of ITU-R BT.601 in units of 1/256, to the nearest."""
    if images.shape[3] == 1:
        return np.asarray(images[:, :, :, 0])
    weighted = images.astype(np.int64) * np.array(LUMA)
    luma: NDArray[np.uint8] = ((weighted.sum(axis=3) + 128) >> 8).astype(np.uint8)
    return luma


def area_sampling(source: int) -> Floats:
    """(28, source): what each pixel covers of 28 equal stretches, in units of 2^-12, rounded down; 28: the identity."""
    edges = np.arange(SIDE + 1) * source
    pixel = np.arange(source) * SIDE
    begin = np.maximum(edges[:-1, None], pixel[None, :])
    end = np.minimum(edges[1:, None], pixel[None, :] + SIDE)
    return np.asarray(np.maximum(end - begin, 0) * AREA_UNITS // source, dtype=np.float64)


def resized(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 28, 28) from (n, h, w): the mean of the area that each pixel covers."""
    _n, height, width = pictures.shape
    if (height, width) == (SIDE, SIDE):
        return pictures
    sums = area_sampling(height) @ pictures.astype(np.float64) @ area_sampling(width).T
    return np.rint(sums / AREA_UNITS**2).astype(np.uint8)


# --- scattering -----------------------------------------------------------------------------------------------


def scattering(pictures: NDArray[np.uint8], by: Constants) -> Floats:
    """(n, 49, 81) whole numbers from (n, 28, 28): the 81 maps, rooted, at the 49 frequencies."""
    n = len(pictures)
    first = np.rint(_across(_moduli(pictures, by.fine, FINE, 2.0**-8), by.low_halving) * 2.0**-16)  # (n, 8, 196)
    first_coarse = _moduli(pictures, by.coarse, COARSE, 2.0**-12)  # (n, 196, 8)
    second = _moduli(first.reshape(-1, HALF, HALF), by.fine, FINE, 2.0**-12)  # (8 n, 196, 8)
    pixels = pictures.reshape(n, 1, SIDE * SIDE) * (WHITE / 255.0)
    maps = [
        pixels @ by.low_pixels,
        first @ by.low_half,
        _across(first_coarse, by.low_half),
        _across(second, by.low_half).reshape(n, DIRECTIONS**2, FREQUENCIES),
    ]
    return (np.rint(np.sqrt(np.concatenate(maps, axis=1))) @ by.cosines).transpose(0, 2, 1)


def _moduli(maps: NDArray[Any], taps: NDArray[np.float32], window: Window, unit: float) -> Floats:
    """(n, positions, 8): moduli of 8 waves on (n, side, side) with zeros around, whole multiples of 1/4080 of white."""
    padded = np.pad(maps.astype(np.float32), ((0, 0), (window.border,) * 2, (window.border,) * 2))
    views = np.lib.stride_tricks.sliding_window_view(padded, (window.size, window.size), axis=(1, 2))
    views = views[:, :: window.stride, :: window.stride]
    responses = (views.reshape(-1, window.size**2) @ taps).astype(np.float64)
    real, imaginary = responses[:, :DIRECTIONS], responses[:, DIRECTIONS:]
    return np.rint(np.sqrt(real * real + imaginary * imaginary) * unit).reshape(len(maps), -1, DIRECTIONS)


def _across(maps: Floats, low: Floats) -> Floats:
    """(n, maps, target): averages of (n, source, maps)."""
    return np.ascontiguousarray(maps.transpose(0, 2, 1)) @ low


# --- the encoder ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageRows:
    """The encoding of the one picture that a row of the task holds."""

    column: ImageColumn
    features: int
    bias: float
    constants: Constants

    @classmethod
    def of(cls, task: Task) -> ImageRows:
        """The encoding that `task` asks for."""
        settings, column = task.encoder, task.columns[0]
        assert isinstance(settings, ImageEncoder)  # noqa: S101 - the registry calls it for this kind alone
        assert isinstance(column, ImageColumn)  # noqa: S101 - so the task's checks say
        return cls(column, settings.features, settings.bias, constants())

    @property
    def dimension(self) -> int:
        """d: the coordinates of x, bias included."""
        return self.features + 1

    @property
    def feature_scale(self) -> float:
        """sqrt(1 - beta^2)."""
        return math.sqrt(1.0 - self.bias * self.bias)

    @cached_property
    def projections(self) -> tuple[tuple[int, Ints, Floats], ...]:
        """Per frequency that is used: itself, the places of its k features in x, and their directions (k, 81)."""
        used = self.constants.frequency[: self.features]
        places = [(int(frequency), np.flatnonzero(used == frequency)) for frequency in np.unique(used)]
        return tuple((frequency, place, self.constants.directions[place]) for frequency, place in places)

    def encode(self, batch: Batch) -> Floats:
        """(n, d): one x per row, of norm 1 up to rounding."""
        images = batch.images[self.column.name]
        x = np.empty((len(images), self.dimension))
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            x[chunk, :-1] = self._unit_rows(resized(grey(images[chunk])))
        x[:, :-1] *= self.feature_scale
        x[:, -1] = self.bias
        return x

    def _unit_rows(self, pictures: NDArray[np.uint8]) -> Floats:
        maps = scattering(pictures, self.constants)
        z = np.empty((self.features, len(pictures)))
        for frequency, places, directions in self.projections:
            centered = maps[:, frequency] - self.constants.mean[frequency]
            z[places] = (directions @ centered.T) * self.constants.scale[places, None]
        squares = np.zeros(len(pictures))
        for feature in z:  # one after the other: the order of a sum must not depend on the batch
            squares += feature * feature
        return (z / np.maximum(np.sqrt(squares), SMALLEST_NORM)).T
