"""The only place where privacy noise is drawn: OpenDP's discrete Gaussian on 64-bit integers.

The sampler is exact (Canonne, Kamath & Steinke 2020): rational arithmetic on bits from the operating system,
no floating point, no seed. It takes no generator and nothing here can be made to repeat itself, on purpose.
An entry takes about 17 microseconds: 8 ms for the 525 of the heart task, 5 s for a Gram matrix of 800 features.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_SIGMA = 2**52  # noise beyond 2^59 then never happens (128 deviations), so int64 sums of up to 2^62 stay exact


def discrete_gaussian(values: NDArray[np.int64], sigma: int) -> NDArray[np.int64]:
    """`values` plus independent discrete Gaussian noise of scale `sigma` (whole units) on every entry.

    Raises ValueError unless 1 <= sigma <= MAX_SIGMA and every |value| <= 2^62: OpenDP saturates at the ends
    of int64, and these limits keep 128 deviations away from them.
    """
    if not 1 <= sigma <= MAX_SIGMA:
        raise ValueError("the scale of the noise is outside the range in which it is exact")
    fits = values.dtype == np.int64 and values.ndim == 1
    if not fits or values.max(initial=0) > 2**62 or values.min(initial=0) < -(2**62):
        raise ValueError("noise is added to a vector of int64 entries of at most 2^62 in magnitude")
    noised = np.asarray(_mechanism(sigma)(values), dtype=np.int64)
    if noised.shape != values.shape:
        raise RuntimeError("the noise library returned another number of entries than it was given")
    return noised


@functools.lru_cache(maxsize=16)
def _mechanism(sigma: int) -> Any:
    import opendp.prelude as dp  # takes most of a second to load

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64")
    return dp.m.make_gaussian(*space, float(sigma))
