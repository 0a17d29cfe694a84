"""Bombs and traps, one a limit of `features.limits`: each is refused by its name, before it takes memory or time."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features import limits
from features._common.csv_table import read_csv_table
from features._common.strict_json import parse_json
from features.config import Config, DataConfig, read_config
from features.errors import BadInputs, ConfigError, DataError
from features.hdf5 import check_weights
from features.model_file import check_architecture, read_model_config
from stage1_extract.datasets import scan
from stage1_extract.datasets.annotation_json import load_json, vehicle_labels
from stage1_extract.datasets.archive import ZipPath, open_folder_or_zip, read_file
from stage1_extract.datasets.image_file import read_info
from stage1_extract.datasets.video import Video
from stage2_temporal.sweep.spec import Sweep, sweep_entries
from tests.dataset_helpers import data_config, write_clip
from tests.hostile_input import bounded_memory

MB = 1 << 20
pytestmark = pytest.mark.timeout(20)


def write_zip(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def test_zip_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.bmp": bytes(MB)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2") + 24  # the size in the directory
    data[at : at + 4] = (2000 * MB).to_bytes(4, "little")
    path.write_bytes(data)
    with bounded_memory(), pytest.raises(DataError, match=r"a\.zip: unpacks to far more than its size.*Try"):
        open_folder_or_zip(path, hint="")


def test_zip_whose_entries_share_their_bytes_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": os.urandom(9000)}, zipfile.ZIP_STORED)
    with zipfile.ZipFile(path, "a") as file:
        info = file.infolist()[0]
        for name in ("b.jpg", "c.jpg"):
            other = zipfile.ZipInfo(name)
            other.header_offset, other.file_size, other.compress_size, other.CRC = (
                0,
                info.file_size,
                info.compress_size,
                info.CRC,
            )
            file.filelist.append(other)
        file._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="has entries that share their bytes"):
        open_folder_or_zip(path, hint="")


def test_zip_with_too_many_entries_is_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    size = (limits.ZIP_ENTRIES + 1) * 46
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, 0, 0)
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end)
    with bounded_memory(), pytest.raises(DataError, match="too many entries; expected at most 1,000,000"):
        open_folder_or_zip(path, hint="")


def test_links_in_a_zip_are_not_followed(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match=r"a\.jpg: a link, which is not followed"):
        read_file(open_folder_or_zip(tmp_path / "a.zip", hint="").joinpath("a.jpg"))


def test_entry_that_holds_more_than_it_declares_is_not_unpacked(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jpg": bytes(50 * MB)})
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\1\2") + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    with bounded_memory(), pytest.raises(DataError, match="damaged or unreadable zip entry"):
        read_file(open_folder_or_zip(path, hint="").joinpath("a.jpg"))


def test_zip_in_a_zip_is_not_unpacked(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"../evil": b"x"}).read_bytes()
    root = open_folder_or_zip(write_zip(tmp_path / "a.zip", {"inner.zip": inner}), hint="")
    assert (
        isinstance(root, ZipPath) and root.joinpath("inner.zip").is_file() and not root.joinpath("inner.zip").is_dir()
    )


def test_deep_and_long_paths_in_a_zip_are_refused(tmp_path: Path) -> None:
    for name in ("a/" * 3000 + "b", "9" * 5000):
        with pytest.raises(DataError, match="too long a path") as caught:
            open_folder_or_zip(write_zip(tmp_path / "a.zip", {name: b""}), hint="")
        assert len(str(caught.value)) < 500


def test_one_large_frame_number_does_not_make_a_list_of_all(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "data/Train/Train/1")
    (clip / "imgs/999999999999.jpg").write_bytes(b"x")
    [fault, *_] = scan(data_config("competition", tmp_path / "data"), threads=1).faults
    assert "no frame 9, 10, 11, 12, 13 …" in fault or "no frame" in fault


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names on this system")
def test_pipe_in_the_place_of_a_frame_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "001.jpg")
    with pytest.raises(DataError, match=r"001\.jpg: not a regular file"):
        read_file(tmp_path / "001.jpg")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested more than 64 deep"), ("[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("1e400", "the number 1e400"), ("[NaN]", "the number NaN"), ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ("[" + "9" * 30 + "]", "beyond int64"),
        (" " * (limits.JSON_BYTES + 1), "at most 33,554,432 are read"), ("[" + "9" * 5000 + "]", "4300"),
    ],
)  # fmt: skip
def test_json_beyond_the_limits_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_annotation_with_too_many_vehicles_is_one_fault(tmp_path: Path) -> None:
    faults: list[str] = []
    (tmp_path / "a.json").write_text("[" + "0," * 200_000 + "0]")
    [value] = load_json(tmp_path / "a.json", faults)
    vehicle_labels(value, "a.json", 0, velocity_required=True, all_vehicles=True, faults=faults)
    assert faults == ["a.json: too many vehicles; expected at most 1,000; got 200,001."]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = " + "[" * 100_000, "nested more than 64 deep"), (".".join("a" * 100_000) + " = 1",
        "a key of more than 64"),
        ("x = " + "[" * 70 + "]" * 70, "nested more than 64 deep"), ("x = 1" + "0" * 30, "beyond int64"),
        ("#" * (limits.TEXT_BYTES + 1), "too large; expected at most 1,048,576 bytes"), ("[data]\nfps = nan",
        "data.fps"),
        ("[data]\nfps = inf", "data.fps: input should be"), ("[window]\nlength = 1000000000", "window.length"),
        ("\n".join(f"key{i} = 1" for i in range(50_000)), "unknown keys"),
    ],
)  # fmt: skip
def test_config_beyond_the_limits_is_refused_in_one_short_line(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with bounded_memory(), pytest.raises(ConfigError, match=reason) as caught:
        read_config(tmp_path / "a.toml")
    assert len(str(caught.value)) < 2500 and "\n" not in str(caught.value)


def test_sweep_with_too_many_runs_is_refused() -> None:
    lists = {f"head.{name}": list(range(1, 101)) for name in ("units", "dense", "grid", "components")}
    with pytest.raises(BadInputs, match="too many runs; expected at most 100,000; got 100,000,000"):
        sweep_entries(Sweep(entries=(lists,)), Config())
    with pytest.raises(BadInputs, match="got 1,000,000,000"):
        sweep_entries(Sweep(entries=({"head.dropout": {"low": 0.0, "high": 0.5}, "draws": 10**9},)), Config())


def test_table_with_too_many_cells_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n" + "," * (limits.CSV_CELLS + 9))
    with (
        bounded_memory(),
        pytest.raises(DataError, match=r"a\.csv, line 2: too large; expected at most 10,000,000 cells"),
    ):
        read_csv_table(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a\n" + "x" * (limits.CSV_CELL + 1))
    with pytest.raises(DataError, match="field larger than field limit"):
        read_csv_table(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open("wb") as file:
        file.truncate(limits.CSV_BYTES + 1)  # without any line end
    with bounded_memory(), pytest.raises(DataError, match="too large; expected at most 536,870,912 bytes"):
        read_csv_table(tmp_path / "a.csv")


def png(width: int, height: int, *extra: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    chunks = (header, *extra, (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in chunks
    )


def test_images_pixels_are_counted_before_it_is_decoded() -> None:
    for size in ((60_000, 60_000), (8000, 5001)):
        with (
            bounded_memory(),
            pytest.raises(DataError, match=r"too large an image; expected at most 40,000,000 pixels"),
        ):
            read_info(png(*size), "a.png")


def test_metadata_that_unpacks_to_far_more_is_refused() -> None:
    bomb = zlib.compress(bytes(80 * MB))
    for chunk in ((b"zTXt", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb)):
        with bounded_memory():
            try:
                read_info(png(8, 8, chunk), "a.png")
            except DataError as e:
                assert "a.png: damaged image" in str(e)


@pytest.mark.parametrize(
    "text",
    ["#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {}\n",
     "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n"],
)  # fmt: skip
def test_playlist_in_the_place_of_a_video_opens_nothing_else(tmp_path: Path, text: str) -> None:
    import av

    with av.open(str(tmp_path / "secret.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="bgr24")))
        container.mux(stream.encode())
    assert Video(tmp_path / "secret.mp4").length == 3
    (tmp_path / "a.mp4").write_text(text.format("secret.mp4"))
    with pytest.raises(DataError, match=r"a\.mp4: not a video that FFmpeg can decode"):
        Video(tmp_path / "a.mp4")


LAYER = {"module": "keras.layers", "registered_name": None}
WEIGHTS = {"model.weights.h5": b""}


@pytest.mark.parametrize("name", ["Lambda", "TFSMLayer", "TorchModuleWrapper", "TimeDistributed", "StringLookup"])
def test_layers_that_run_code_or_read_files_are_refused_unseen(tmp_path: Path, name: str) -> None:
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": name, "config": {}, **LAYER}]}, **LAYER}
    path = write_zip(tmp_path / "m.keras", {"config.json": json.dumps(config).encode(), **WEIGHTS})
    with pytest.raises(ValueError, match=f"a layer {name}, which is not safe to load"):
        read_model_config(path)


def test_architecture_beyond_the_limits_is_refused() -> None:
    many: Any = {"class_name": "Sequential", "config": [{"class_name": "Dense"}] * (limits.MODEL_OBJECTS + 1)}
    for config, reason in ((many, "more than 20,000"), ([], "no JSON object"), ({"unroll": True}, "unrolled")):
        with pytest.raises(ValueError, match=reason):
            check_architecture(config)


@pytest.mark.parametrize("trap", ["bomb", "external", "link", "virtual"])
def test_weights_that_lead_elsewhere_or_declare_too_much_are_refused(tmp_path: Path, trap: str) -> None:
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as f:
        match trap:
            case "bomb":
                f.create_dataset("a/b", (1 << 34,), "f4", chunks=(1 << 20,), compression="gzip")
            case "external":
                f.create_dataset("a/b", (3,), "f4", external=[("/etc/passwd", 0, 12)])
            case "link":
                f["a/b"] = h5py.ExternalLink("/etc/passwd", "/x")
            case "virtual":
                layout = h5py.VirtualLayout((3,), "f4")
                layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
                f.create_virtual_dataset("a/b", layout)
    with pytest.raises(ValueError, match=r"more than .* bytes in a file|in another file|links to somewhere else"):
        check_weights(path, path.stat().st_size)


def test_limits_are_listed_in_the_documentation() -> None:
    from tests.helpers import ROOT

    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    names = [name for name in vars(limits) if name.isupper() and name not in ("KB", "MB")]
    assert len(names) >= 20
    for name in names:
        assert f"`{name}`" in page, name


def test_data_set_is_still_read() -> None:
    """A limit below real data would be worse than none: eight hours of 4K frames in a zip of 200 GB, for one."""
    assert limits.IMAGE_PIXELS > 7680 * 4320 and limits.CSV_CELLS >= 10 * 8 * 3600 * 30
    assert limits.ZIP_ENTRIES >= 8 * 3600 * 30 and limits.VIDEO_FRAMES >= 8 * 3600 * 120
    assert DataConfig().fps < 1e6
