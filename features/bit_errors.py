"""Correcting a single wrong bit from a Fletcher-32 checksum, which HDF5 stores after each chunk.

Both sums are modulo 65535, of the chunk's 16-bit words: one of the words, one of each times its distance from the end
(Fletcher 1982). A wrong bit k changes the first sum by ±2ᵏ, all different modulo 65535, and the second by that times
the distance, so in fewer than 65,535 words the two differences are those of a single bit. Other damage looks like one
wrong bit in about one of 2³² / bits cases.
"""

from __future__ import annotations

import numpy as np

MODULUS = 65535
MAX_BYTES = 1 << 16  # above this, other damage would look like a single wrong bit too often


def corrected_chunk(chunk: bytes) -> bytes | None:
    """Return the data of a chunk that ends with its checksum; None if more than a single bit is wrong."""
    data, checksum = chunk[:-4], int.from_bytes(chunk[-4:], "little")
    if len(data) > MAX_BYTES:
        return None
    words = np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.int64)
    weights = np.arange(len(words), 0, -1)
    first = ((checksum & 0xFFFF) - int(words.sum())) % MODULUS
    second = ((checksum >> 16) - int((words * weights).sum() % MODULUS)) % MODULUS
    changes = {sign * (1 << k) % MODULUS: (sign, k) for k in range(16) for sign in (1, -1)}
    if not first or not second:  # intact, or the wrong bit is in the checksum
        return data if (first or second) in (0, *changes) else None
    if first not in changes:
        return None
    sign, k = changes[first]
    at = len(words) - second * pow(first, -1, MODULUS) % MODULUS
    if not 0 <= at < len(words) or bool(words[at] >> k & 1) == (sign > 0):
        return None
    words[at] += sign * (1 << k)
    return words.astype(">u2").tobytes()[: len(data)]
