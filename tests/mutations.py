"""A structure-aware fuzzer: small sound files, changed in ways that their format has, or in their bytes.

Every input follows from its kind and its number, so that a failure is repeated by `python -m tests.hostile_formats KIND
NUMBER`.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

HUGE = "9" * 400
DEEPEST = 20  # keys that lead to a place that is changed
RAW_NUMBERS = ("1e400", "-1e400", "NaN", "Infinity", "-Infinity", HUGE, "-0", "1E-400", "0x10", "01", "1_0", "+1")
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.5, 1e-300, 1e300, -1e300, 1e38, 2**31, 2**53, 2**62, -(2**62), "", " ",
    "1", "nan", "../../x", "/etc/passwd", "a\0b", "\x1b[2J", "\u202e", "=1+1", "<script>", "é" * 50,
    "x" * 5000, [], {}, [[]],
    [1, 2], [None] * 5, {"a": 1}, ["1"], [1e300, -1e300], [[[[[[]]]]]],
)  # fmt: skip
INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
Mutate = Callable[[random.Random], bytes]


def mutate_bytes(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """One to four changes: bits, bytes, numbers of 2 to 8 bytes, pieces left out, repeated, moved or put in."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(changed)
        if not size:
            return bytes(changed)
        at, length = rng.randrange(size), rng.choice((1, 1, 2, 4, 8, 16, 64, 500))
        match rng.randrange(10):
            case 0 | 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
            case 3 | 4:
                form = rng.choice("<>") + rng.choice("HIQ")
                number = struct.pack(form, rng.choice(INTEGERS) % (1 << 8 * struct.calcsize(form)))
                changed[at : at + len(number)] = number
            case 5:
                del changed[at:]
            case 6:
                del changed[at : at + length]
            case 7:
                changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 50))
            case 8:
                changed[at:at] = rng.choice(words) if words else rng.randbytes(length)
            case 9:
                to = rng.randrange(size)
                changed[to : to + length] = changed[at : at + length]
    return bytes(changed)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to each value in a tree."""
    children: Any = ()
    if len(path) > DEEPEST:
        return [path]
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    return [path, *(p for key, child in children for p in _paths(child, (*path, key)))]


def mutate_tree(tree: Any, rng: random.Random, values: Sequence[Any] = VALUES) -> Any:
    """Change one to three places in dictionaries and lists: another value, left out, renamed, repeated or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        paths = _paths(tree)
        *keys, last = rng.choice(paths[1:]) if len(paths) > 1 else (None,)
        if not keys and last is None:
            return copy.deepcopy(rng.choice(values))
        parent = tree
        for key in keys:
            parent = parent[key]
        match rng.randrange(8):
            case 0 | 1 | 2 | 3:
                parent[last] = copy.deepcopy(rng.choice(values))
            case 4:
                del parent[last]
            case 5:
                other = tree
                for key in rng.choice(paths[1:]):
                    other = other[key] if isinstance(other, dict | list) and len(other) and _has(other, key) else other
                parent[last] = copy.deepcopy(other)
            case 6:
                if isinstance(parent, dict):
                    parent[rng.choice(("", "x", "__class__", "name", str(last) * 2))] = parent[last]
                else:
                    parent.extend([copy.deepcopy(parent[last])] * rng.choice((1, 3, 100)))
            case 7:
                deep = parent[last]
                for _ in range(rng.choice((1, 5, 60, 63, 64, 65, 100, 150))):
                    deep = [deep] if rng.random() < 0.5 else {"a": deep}
                parent[last] = deep
        if rng.random() < 0.02:
            return tree
    return tree


def _has(value: Any, key: Any) -> bool:
    return key in value if isinstance(value, dict) else isinstance(key, int) and key < len(value)


def mutate_json(tree: Any, rng: random.Random) -> bytes:
    """JSON of a changed tree; now and then with keys twice, numbers that are none, other encodings, or broken bytes."""
    text = json.dumps(mutate_tree(tree, rng) if rng.random() < 0.8 else tree, ensure_ascii=rng.random() < 0.5)
    match rng.randrange(12):
        case 0:
            at = [i for i, c in enumerate(text) if c.isdigit()]
            if at:
                i = rng.choice(at)
                text = text[:i] + rng.choice(RAW_NUMBERS) + text[i + 1 :]
        case 1:
            text = text.replace("{", '{"speed": 1, "speed": 2, "velocity": [1, 2], ', 1)
        case 2:
            depth = rng.choice((10, 100, 1000, 100_000))
            text = rng.choice(("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth))
        case 3:
            return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xff")) + text.encode(errors="replace")
        case 4:
            return text.encode("utf-16")
        case 5 | 6:
            return mutate_bytes(text.encode(errors="surrogatepass"), rng, [w.encode() for w in RAW_NUMBERS])
    return text.encode(errors="surrogatepass")


CELLS = (
    "", " ", "0", "-1", "1e308", "1e400", "nan", "inf", "-inf", HUGE, "1e-320", "1.5", "x", "../../x", "/dev/zero",
    "=1+1", "\x1b[2J", "é", '"', '""', '"a,b"', "a\0b", "train", "test", "1_0", "٣", "x" * 3000, "5" * 5000,
    "9007199254740993",
)  # fmt: skip


def mutate_csv(rows: Sequence[Sequence[str]], rng: random.Random) -> bytes:
    """A table with other cells, rows and columns; now and then with other separators, quotes, encodings or bytes."""
    table = [list(row) for row in rows]
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(table)
        at = rng.randrange(len(row)) if row else 0
        match rng.randrange(9):
            case 0 | 1 | 2 | 3 | 4 if row:
                row[at] = rng.choice(CELLS)
            case 5 if row:
                del row[at]
            case 6:
                row.extend([rng.choice(CELLS)] * rng.choice((1, 2, 500)))
            case 7:
                table.extend(copy.deepcopy(rng.sample(table, min(3, len(table)))))
            case 8:
                first, second = rng.randrange(len(table[0])), rng.randrange(len(table[0]))
                for some in table:
                    if len(some) > max(first, second):
                        some[first], some[second] = some[second], some[first]
    separator, end = rng.choice((",", ",", ",", ";", "\t", "|")), rng.choice(("\n", "\n", "\r\n", "\r", "\n\n"))
    text = end.join(separator.join(row) for row in table) + rng.choice((end, "", "\n" * 9))
    data = text.encode(errors="surrogatepass")
    match rng.randrange(10):
        case 0:
            return mutate_bytes(data, rng, [b'"', b",", b"\n", b"\0"])
        case 1:
            return text.encode("utf-16")
        case 2:
            return b"\xef\xbb\xbf" + data
    return data
