"""8-bit floats with 4 bits of exponent and 3 of mantissa, without infinities (OCP 8-bit floating point, E4M3)."""

from typing import Final

import numpy as np
import numpy.typing as npt

from flowserve.cachestore.floats import Floats

E4M3_MAX: Final = 448.0
"""The greatest finite number."""

_NORMAL: Final = np.float32(2.0**-6)
"""The least number with a full mantissa; below they are multiples of 2**-9."""


def _number(code: int) -> float:
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if code & 128 else size


E4M3: Final[Floats] = np.array([_number(code) for code in range(256)], np.float32)
"""The number of each code."""


def to_e4m3(numbers: Floats) -> npt.NDArray[np.uint8]:
    """Codes of the nearest numbers, ties to the even code; what lies beyond the greatest becomes the greatest."""
    sizes = np.minimum(np.abs(numbers), np.float32(E4M3_MAX))
    bits = sizes.view(np.uint32)
    rounded = bits + np.uint32(0x7FFFF) + ((bits >> np.uint32(20)) & np.uint32(1))
    # From float32 (bias 127) to 4 bits of exponent with bias 7: 120 less, in units of the last place kept.
    normal = (rounded >> np.uint32(20)).astype(np.int32) - (120 << 3)
    subnormal = np.rint(sizes * np.float32(512)).astype(np.int32)
    codes = np.where(sizes < _NORMAL, subnormal, normal).astype(np.uint8)
    return codes | (np.signbit(numbers).astype(np.uint8) << np.uint8(7))
