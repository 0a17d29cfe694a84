"""What the tests of extraction share: a small config, and the raw content of a store."""

from __future__ import annotations

import tomllib
from pathlib import Path

import h5py

from features.config import Config

CONFIG = """
[data]
layout = "competition"
path = "{data}"
target = "velocity"
[frames]
width = 32
height = 32
[backbone]
name = "MobileNet"
weights = "random"
cut = "conv_pw_3_relu"
top = false
arguments = {{alpha = 0.25}}
[extract]
batch = 8
shard = 20
motion = true
"""


def extraction_config(data: Path = Path("unused"), **extract_settings: object) -> Config:
    """`CONFIG` for a data set, with other settings in [extract]."""
    value = tomllib.loads(CONFIG.format(data=data))
    value["extract"] |= extract_settings
    return Config.model_validate(value)


def store_content(path: Path) -> dict[str, bytes]:
    """Every dataset of a store: raw chunks, checksums included, or values if it has no chunks."""
    datasets: dict[str, bytes] = {}

    def visit(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            if node.chunks and node.id.get_num_chunks():
                chunks = [node.id.get_chunk_info(i).chunk_offset for i in range(node.id.get_num_chunks())]
                datasets[name] = b"".join(node.id.read_direct_chunk(c)[1] for c in sorted(chunks))
            else:
                datasets[name] = repr(node[()].tolist()).encode()

    with h5py.File(path) as f:
        f.visititems(visit)
    return datasets
