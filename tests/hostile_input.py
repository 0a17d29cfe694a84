"""What framebank does with fuzzed files of each kind: it reads them, or refuses them in one error of its own.

More kinds, and how to repeat a finding: `tests.hostile_formats`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import pickle
import random
import signal
import stat
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import PIL.Image
import tomlkit

from features._common.cli import describe_os_error
from features.config import Config, DataConfig, read_config
from features.errors import BadInputs, FramebankError
from features.head_config import list_heads
from features.sequences import FrameSequence
from features.strict_model import read_toml
from stage1_extract.camera_calibration import camera_from_exif
from stage1_extract.datasets import scan
from stage1_extract.datasets.annotation_json import ego_labels, load_json, vehicle_labels
from stage1_extract.datasets.archive import ZipPath, list_folder, open_folder_or_zip, read_file
from stage1_extract.datasets.calibration import read_camera
from stage1_extract.datasets.camera_file import read_camera_file
from stage1_extract.datasets.image_file import decode_image, read_info
from stage1_extract.datasets.manifest import manifest_clips
from stage1_extract.datasets.undistortion import corner_shift
from stage1_extract.datasets.video import Video, _labels
from stage1_extract.ground_flow.drive_speed import _known_speeds
from stage2_temporal.evaluation.history import read_history
from stage2_temporal.evaluation.intervals import ConformalScores, ErrorScale
from stage2_temporal.evaluation.known_cameras import known_cameras
from stage2_temporal.evaluation.novelty import NoveltyModel
from stage2_temporal.evaluation.tusimple import tusimple_table
from stage2_temporal.evaluation.uncertainty import (
    IntervalOptions,
    Uncertainty,
    one_sequence,
    read_uncertainty,
    write_uncertainty,
)
from stage2_temporal.report.leaderboard_page import leaderboard_html, leaderboard_text
from stage2_temporal.report.page import render_page
from stage2_temporal.runs.card import run_card
from stage2_temporal.runs.leaderboard import boards, find_runs
from stage2_temporal.runs.results import read_predictions, read_results
from stage2_temporal.runs.tables import metrics_table
from stage2_temporal.sliding.boxes_csv import read_boxes
from stage2_temporal.sweep.spec import Sweep, sweep_entries
from stage2_temporal.vehicle.camera_geometry import read_camera_geometry
from tests.helpers import ROOT, jpeg, picture
from tests.mutations import mutate_bytes, mutate_csv, mutate_json, mutate_tree
from tests.report_runs import MemoryStore, make_run

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SECONDS, EXTRA_MEMORY = 20, 2 << 30  # that one input may take
Kind = Callable[[random.Random, Path], None]
KINDS: dict[str, Kind] = {}
OUTCOMES: Counter[str] = Counter()  # of the inputs so far


def kind(function: Kind) -> Kind:
    """Register a kind: a function that makes an input in a folder, and reads it."""
    KINDS[function.__name__] = function
    return function


class HangError(BaseException):
    """An input took more than `SECONDS`; no handler of errors catches it."""


def check(name: str, number: int, folder: Path) -> str | None:
    """Make and read input `number` of a kind; what is wrong with the outcome, or None."""

    def stop(*_: object) -> None:
        raise HangError

    timed = hasattr(signal, "setitimer")  # not on Windows
    before = signal.signal(signal.SIGALRM, stop) if timed else None
    if timed:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras, as in pyproject
            KINDS[name](random.Random(f"{name} {number}"), folder)
        OUTCOMES["read"] += 1
    except FramebankError as e:
        OUTCOMES["refused"] += 1
        lines = e.faults if isinstance(e, BadInputs) else [str(e)]
        if any("\n" in line or len(line) > 4000 for line in lines):
            return f"not one line: {str(e)[:300]!r}"
    except OSError as e:
        if describe_os_error(e) is None:
            return traceback.format_exc(limit=-6)
    except HangError:
        return "took more than 20 s\n" + traceback.format_exc(limit=-6)
    except BaseException:
        return traceback.format_exc(limit=-6)[-3000:]
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return None


def load_libraries(name: str) -> None:
    """Load what a kind needs, which may take more than an input's time and memory."""
    if name in ("keras_file", "weights_h5", "pth", "onnx_file", "safetensors_file"):
        keras_models()


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within this block, the process may use `EXTRA_MEMORY` more address space than it has; on Linux."""
    if resource is None or not Path("/proc/self/statm").exists():
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


VEHICLE = {
    "velocity": [1.5, -0.1], "position": [20.0, -1.0],
    "bbox": {"left": 10.0, "top": 20.5, "right": 40, "bottom": 50},
}  # fmt: skip


@kind
def annotation(rng: random.Random, folder: Path) -> None:
    path, faults = folder / "annotation.json", list[str]()
    path.write_bytes(mutate_json(rng.choice(([VEHICLE, VEHICLE], {"speed": 12.5, "yaw_rate": 0.1})), rng))
    for value in load_json(path, faults):
        vehicle_labels(value, str(path), 7, velocity_required=rng.random() < 0.5, all_vehicles=True, faults=faults)
        ego_labels(value, str(path), 7, faults)
    assert all("\n" not in fault and str(path) in fault for fault in faults)


@kind
def benchmark_json(rng: random.Random, folder: Path) -> None:
    clips = [[VEHICLE], [VEHICLE, VEHICLE]]
    (folder / "a.json").write_bytes(mutate_json(clips, rng))
    (folder / "b.json").write_text(json.dumps(clips))
    tusimple_table(*rng.sample((folder / "a.json", folder / "b.json"), 2))


@cache
def configs() -> list[dict[str, Any]]:
    shipped = [tomlkit.parse(path.read_text()).unwrap() for path in sorted((ROOT / "configs").glob("*.toml"))]
    heads = [Config().model_dump(mode="json", exclude_none=True) | {"head": {"name": name}} for name in list_heads()]
    return [
        *shipped,
        *heads,
        {"fx": 700.0, "fy": 700, "cx": 640.5, "cy": 360, "size": [1280, 720], "distortion": [-0.2, 0.1]},
    ]


@kind
def toml(rng: random.Random, folder: Path) -> None:
    path, tree = folder / "a.toml", rng.choice(configs())
    changed = mutate_tree(tree, rng) if rng.random() < 0.8 else tree
    try:
        text = tomlkit.dumps(changed) if isinstance(changed, dict) else f"a = {json.dumps(changed)}"
    except Exception:  # TOML has no null, for one
        text = tomlkit.dumps(tree)
    if rng.random() < 0.2:
        depth = rng.choice((50, 500, 5000, 100_000))
        text += rng.choice(
            (f"\nx = {'[' * depth}{']' * depth}", f"\n{'.'.join('a' * depth)} = 1", f"\nx = {'9' * depth}")
        )
    data = text.encode(errors="surrogatepass")
    if rng.random() < 0.3:
        data = mutate_bytes(
            data, rng, [b"[", b"{", b'"', b"=", b"nan", b"inf", b"1e400", b"\xff", b"'''", b"\n[head]\n"]
        )
    path.write_bytes(data)
    if "fx" in tree:
        file = read_camera_file(path)
        camera = file.camera(file.size)
        corner_shift(camera, file.size, file.distortion)
    elif "entries" in tree:
        sweep_entries(read_toml(Sweep, path), Config())
    else:
        assert read_config(path).to_toml()


MANIFEST = [
    ["path", "sequence", "frame", "split", "time", "fps", "vx", "left", "top", "right", "bottom", "x", "y"],
    *([f"{i}.jpg", "a", str(i), "train", str(i / 20), "20", "1.5", "1", "2", "13", "14", "20", "-1"] for i in range(4)),
    *([f"{i}.jpg", "b", str(i), "test", "", "", "", "", "", "", "", "", ""] for i in range(3)),
]
BOXES = [
    ["frame", "left", "top", "right", "bottom", "vehicle"],
    *([str(i), "1", "2", "30", "40", "car"] for i in range(4)),
]
SPEEDS = [["frame", "ego_speed", "speed"], *([str(i), "12.5", "12.5"] for i in range(5))]
HISTORY = [
    ["epoch", "loss", "rmse", "val_loss", "val_rmse", "seconds"],
    *([str(i), "1.0", "1", "", "2", "3"] for i in range(3)),
]
PREDICTIONS = [
    ["split", "sequence", "label", "frame", "first", "stride", "length", "v_true", "v_pred", "distance"],
    *(["test", f"t/{i}", "0", "7", "0", "1", "8", "1.0", "1.5", ""] for i in range(4)),
]


@kind
def table(rng: random.Random, folder: Path) -> None:
    sequence = FrameSequence("a", "train", 5, 20.0, (64, 48), "")
    path, faults = folder / "a.csv", list[str]()
    name, rows = rng.choice(
        (("manifest", MANIFEST), ("boxes", BOXES), ("labels", SPEEDS), ("speeds", SPEEDS), ("history", HISTORY),
         ("predictions", PREDICTIONS))
    )  # fmt: skip
    path.write_bytes(mutate_csv(rows, rng))
    match name:
        case "manifest":
            specs, faults = manifest_clips(DataConfig(path=str(path), layout="manifest"))
            faults += [fault for spec in specs for fault in spec.faults]
        case "boxes":
            read_boxes(path, sequence)
        case "labels":
            _labels(folder / "a.mp4", 5, faults, True)
        case "speeds":
            _known_speeds(str(path), sequence.frame_times)
        case "history":
            read_history(path, "train again")
        case "predictions":
            read_predictions(path, ("v",))
    assert all("\n" not in fault for fault in faults)


CALIBRATION = "Intrinsic matrix:\n714.2 0 675.6\n0 710.4 376.3\n0 0 1\nCamera Height: 1.80m\nHorizon: 340.5\n"


@kind
def calibration(rng: random.Random, folder: Path) -> None:
    path = folder / "calibration.txt"
    words = [
        b"1e400",
        b"nan",
        b"1e308",
        b"-1",
        b"\n",
        b"Horizon:",
        b"9" * 500,
        b"Intrinsic matrix",
        "٣".encode(),
        b"\0",
    ]
    path.write_bytes(mutate_bytes(CALIBRATION.encode(), rng, words))
    camera = read_camera(path)
    camera.resized((1280, 720), (320, 180))
    corner_shift(camera, (1280, 720), (0.1, 0.0, 0.0, 0.0))


@cache
def images() -> list[bytes]:
    """A small image in each format, with the metadata and the pixels that formats have."""
    rgb = PIL.Image.fromarray(picture(1)[..., ::-1].copy())
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a" * 100
    exif.get_ifd(0x8769)[0xA405] = 28
    found = []
    for form, image, options in (
        ("JPEG", rgb, {"exif": exif, "icc_profile": b"x" * 300}), ("JPEG", rgb, {"progressive": True}),
        ("JPEG", rgb.convert("CMYK"), {}), ("JPEG", rgb.convert("L"), {}), ("PNG", rgb, {"icc_profile": b"x" * 3000}),
        ("PNG", rgb.convert("P"), {"exif": exif}), ("TIFF", rgb, {"compression": "tiff_lzw"}), ("TIFF", rgb, {}),
        ("BMP", rgb, {}), ("WEBP", rgb, {"exif": exif}), ("GIF", rgb, {}), ("PPM", rgb, {}), ("JPEG2000", rgb, {}),
        ("TIFF", rgb.convert("CMYK"), {"compression": "jpeg"}), ("AVIF", rgb, {}),
    ):  # fmt: skip
        stream = io.BytesIO()
        with contextlib.suppress(OSError, KeyError):  # a Pillow without this format
            image.save(stream, form, **options)
            found.append(stream.getvalue())
    deep = picture(2).astype(np.uint16) * 16
    found += [
        bytes(cv2.imencode(ending, deep)[1]) for ending in (".png", ".tiff", ".pgm" if deep.ndim == 2 else ".ppm")
    ]
    found += [bytes(cv2.imencode(ending, picture(3))[1]) for ending in (".sr", ".hdr")]
    return found


def png_chunks(data: bytes, rng: random.Random) -> bytes:
    """A PNG with a changed, repeated or added chunk, and right checksums."""
    chunks, at = [], 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    bomb = zlib.compress(bytes(rng.choice((10_000, 3_000_000, 30_000_000))))
    extra = [
        (b"zTXt", b"Comment\0\0" + bomb), (b"iCCP", b"p\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb), (b"IDAT", bomb),
        (b"tEXt", b"a\0" + b"x" * 70_000), (b"eXIf", b"MM\0*" + rng.randbytes(40)), (b"acTL", bytes(8)),
        (b"PLTE", bytes(6)),
    ]  # fmt: skip
    match rng.randrange(4):
        case 0:
            header = bytearray(chunks[0][1])
            header[0:8] = rng.choice(
                (b"\0\0\xff\xff\0\0\xff\xff", b"\x7f\xff\xff\xff\0\0\0\1", bytes(8), rng.randbytes(8))
            )
            chunks[0] = (b"IHDR", bytes(header))
        case 1:
            i = rng.randrange(len(chunks))
            chunks[i] = (chunks[i][0], mutate_bytes(chunks[i][1], rng))
        case _:
            chunks.insert(rng.randrange(len(chunks) + 1), rng.choice(extra))
    body = b"".join(len(body).to_bytes(4) + name + body + zlib.crc32(name + body).to_bytes(4) for name, body in chunks)
    return data[:8] + body


@kind
def image(rng: random.Random, folder: Path) -> None:
    data = rng.choice(images())
    png = data.startswith(b"\x89PNG") and rng.random() < 0.7
    data = (
        png_chunks(data, rng)
        if png
        else mutate_bytes(data, rng, [b"\xff\xd9", b"\xff\xda", b"\xff\xe1\xff\xff", b"\xff\xc0"])
    )
    path = folder / "a.jpg"
    path.write_bytes(data)
    if rng.random() < 0.3:
        camera_from_exif(path)
    else:
        decode_image(data, str(path), read_info(data, str(path)), (8, 8) if rng.random() < 0.5 else None)


def patched_zip(data: bytes, rng: random.Random) -> bytes:
    """A zip with changed fields in its directory: sizes, offsets, method, flags, count."""
    changed = bytearray(data)
    starts = [i for i in range(len(data) - 46) if data[i : i + 4] == b"PK\1\2"]
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.choice(starts)
        field, size = rng.choice(
            ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4), (4, 2), (6, 2))
        )
        value = rng.choice((0, 1, 8, 12, 14, 93, 99, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF, rng.randrange(1 << 32)))
        changed[at + field : at + field + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    return bytes(changed)


NAMES = (
    "../x.jpg", "/etc/x", "C:/x", "a/../../b", "Train/Train/1/imgs/../../../x", "Train/Train/1/imgs/001.jpg",
    "", ".", "/",
    "Train/Train/1/imgs/999999999999.jpg", "Train/Train/1/imgs/" + "9" * 5000 + ".jpg", "a/" * 3000 + "x",
    "a\0b", "\x1b[2J",
    "Train/Train/" + "9" * 5000 + "/imgs/001.jpg", "Train/Train/1/imgs", "Train", "Train/Train/1/imgs/٣.jpg",
    "inner.zip",
    "Train/Train/1/imgs/000.jpg", "Train/Train/\x1b[2J/imgs/001.jpg", "Train/Train/2/imgs/001.5.jpg", "é" * 9000,
)  # fmt: skip


@cache
def small_picture() -> bytes:
    return jpeg(size=(16, 9))


@kind
def archive(rng: random.Random, folder: Path) -> None:
    path = folder / "a.zip"
    files = {f"Train/Train/{clip}/imgs/00{i}.jpg": small_picture() for clip in (1, 2) for i in (1, 2)}
    files |= {f"Train/Train/{clip}/annotation.json": json.dumps([VEHICLE]).encode() for clip in (1, 2)}
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as file:
        warnings.simplefilter("ignore")  # names that are there already
        entries = list(files.items())
        for _ in range(rng.choice((0, 1, 3))):
            content = rng.choice((b"", b"x", small_picture(), bytes(2_000_000), b"/etc/passwd", b"PK\3\4" * 9))
            entries.insert(rng.randrange(len(entries) + 1), (rng.choice(NAMES), content))
        for name, content in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = rng.choice(
                (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            )
            if rng.random() < 0.1:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            with contextlib.suppress(ValueError, struct.error):  # a name longer than a zip can have
                file.writestr(info, content)
    data = stream.getvalue()
    match rng.randrange(4):
        case 0:
            data = patched_zip(data, rng)
        case 1:
            data = mutate_bytes(data, rng, [b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\3\4"])
    path.write_bytes(data)
    if rng.random() < 0.3:
        stack = [open_folder_or_zip(path, hint="")]
        while stack:
            item = stack.pop()
            if item.is_dir():
                stack += list_folder(item)
            elif isinstance(item, ZipPath):
                with contextlib.suppress(FramebankError):
                    read_file(item)
    else:
        catalogue = scan(DataConfig(layout="competition", path=str(path)), threads=1)
        assert all("\n" not in fault for fault in catalogue.faults)
        for clip in catalogue.clips:
            with contextlib.suppress(FramebankError):
                list(clip.source.read(0, clip.sequence.length))


@cache
def videos() -> list[bytes]:
    """A video of a second in several containers and codecs."""
    import av

    found = []
    with tempfile.TemporaryDirectory() as name:
        for ending, codec in (
            ("mp4", "libx264"), ("avi", "mpeg4"), ("mkv", "libx264"), ("ts", "mpeg2video"), ("mov", "mjpeg"),
            ("webm", "libvpx"),
            ("hevc", "libx265"), ("mpg", "mpeg1video"), ("mp4", "mpeg4"),
        ):  # fmt: skip
            path = Path(name) / f"a.{ending}"
            try:
                with av.open(str(path), "w") as container:
                    stream = container.add_stream(codec, rate=25)
                    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p" if codec == "mjpeg" else "yuv420p"
                    for i in range(8):
                        frame = av.VideoFrame.from_ndarray(picture(i), format="bgr24")
                        container.mux(stream.encode(frame))
                    container.mux(stream.encode())
                found.append(path.read_bytes())
            except (av.FFmpegError, ValueError):  # a build without this codec
                continue
    return found


@kind
def video(rng: random.Random, folder: Path) -> None:
    data = rng.choice(videos())
    words = [
        b"\0\0\0\1",
        b"moov",
        b"stts",
        b"stsz",
        b"stsd",
        b"trak",
        b"mdat",
        b"RIFF",
        b"\x1a\x45\xdf\xa3",
        b"#EXTM3U\n",
    ]
    data = mutate_bytes(mutate_bytes(data, rng, words), rng, words)
    if rng.random() < 0.05:
        data = (
            rng.choice((b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n", b"v=0\r\n"))
            + data
        )
    path = folder / "a.mp4"
    path.write_bytes(data)
    opened = Video(path, allow_truncated=rng.random() < 0.5)
    for i in range(min(opened.length, 30)):
        opened.frame(i)


@cache
def weights_file() -> bytes:
    """A small state dict in PyTorch's legacy format: five pickles, then each tensor's bytes."""

    class Rebuild:
        def __init__(self, key: str) -> None:
            self.key = key

        def __reduce__(self) -> tuple[Any, ...]:
            return _rebuild_tensor_v2, (Storage(self.key), 0, (2, 3), (3, 1), False, OrderedDictAlias())

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one in Python, which can be taught
        def persistent_id(self, value: Any) -> Any:
            return ("storage", FloatStorage, value.key, "cpu", 6, None) if isinstance(value, Storage) else None

        def save_global(self, value: Any, name: str | None = None) -> None:
            places = {_rebuild_tensor_v2: "torch._utils\n_rebuild_tensor_v2", FloatStorage: "torch\nFloatStorage"}
            if value in places:
                self.write(b"c" + places[value].encode() + b"\n")
                self.memoize(value)
            else:
                super().save_global(value, name)

        dispatch: ClassVar[dict[Any, Any]] = {**pickle._Pickler.dispatch}  # type: ignore[attr-defined]
        dispatch[type] = save_global
        dispatch[type(lambda: 0)] = save_global

    stream = io.BytesIO()
    for value in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"little_endian": True},
        {"a": Rebuild("0"), "b": Rebuild("1")},
        ["0", "1"],
    ):
        Pickler(stream, 2).dump(value)
    for _ in range(2):
        stream.write((6).to_bytes(8, "little") + np.arange(6, dtype="<f4").tobytes())
    return stream.getvalue()


class Storage:
    def __init__(self, key: str) -> None:
        self.key = key


class FloatStorage:
    pass


def _rebuild_tensor_v2() -> None:
    pass


def OrderedDictAlias() -> Any:
    from collections import OrderedDict

    return OrderedDict()


@kind
def pth(rng: random.Random, folder: Path) -> None:
    from stage1_extract.backbone.efficientnet_lite import read_tensors

    marker = folder / "executed"
    words = [
        f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
        f"cbuiltins\nexec\n(S'open(\"{marker}\",\"w\")'\ntR.".encode(),
        b"cbuiltins\neval\n", b"\x93", b"R", b"b", b"\x81", b"\x8a\xff", b"\x95" + b"\xff" * 8, b"(" * 50,
        b"\x8b\xff\xff\xff\x7f",
        b"ctorch\nFloatStorage\n", b"X\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f",
    ]  # fmt: skip
    data = mutate_bytes(weights_file(), rng, words)
    if rng.random() < 0.1:
        data = rng.choice(words) + data
    try:
        tensors = read_tensors(data)
        assert all(isinstance(v, np.ndarray) for v in tensors.values())
    finally:
        assert not marker.exists()


@cache
def run_template() -> tuple[dict[str, bytes], MemoryStore]:
    """The files of a small run that others send."""
    with tempfile.TemporaryDirectory() as name:
        path, store = make_run(Path(name) / "run", ("vx", "vy"), clips=4)
        rng = np.random.default_rng(0)
        scores = ConformalScores(ErrorScale(np.ones((2, 2)), np.ones(2)), rng.random((9, 2)), np.ones(9))
        cameras = known_cameras(store.sequences)
        novelty = {"inputs": NoveltyModel(np.zeros(3), np.eye(3)[:2], np.ones(2), 1.0, 3.0)}
        write_uncertainty(path, Uncertainty(("vx", "vy"), 0.9, scores, novelty, cameras))
        ground = {"horizon": 340.0, "scale": 1200.0, "span": 1300.0}
        camera = {"fx": 700.0, "fy": 700.0, "cx": 640.0, "cy": 360.0, "height": None, "horizon": None}
        others = [[{"camera": camera, "size": [1280, 720], "sequence": None}, ground]]
        content = {"ground": ground, "camera": camera, "size": [1280, 720], "noise": 0.5, "others": others}
        (path / "ground.json").write_text(json.dumps(content))
        metrics = json.loads((path / "metrics.json").read_text())
        fine = {"best_epoch": 1, "epochs": 2, "unfrozen": ["a"], "verdict": "v"}
        fine["splits"] = {k: {"fine-tuned": v["model"]} for k, v in metrics["splits"].items()}
        (path / "finetune.json").write_text(json.dumps(fine))
        cells = [[0.1, 0.2], [0.3, 0.4]]
        looks = {"examples": 4, "mean": cells, "clips": {f"{s.id}/0": cells for s in store.sequences}}
        (path / "occlusion.json").write_text(json.dumps(looks))
        (path / "finetune.csv").write_bytes((path / "history.csv").read_bytes())
        return {file.name: file.read_bytes() for file in path.iterdir()}, store


@kind
def run_folder(rng: random.Random, folder: Path) -> None:
    files, store = run_template()
    path = folder / "run"
    path.mkdir(exist_ok=True)
    name = rng.choice(sorted(files))
    data = files[name]
    if name.endswith(".json"):
        data = mutate_json(json.loads(data), rng)
    elif name.endswith(".csv"):
        data = mutate_csv([line.split(",") for line in data.decode().splitlines()], rng)
    elif name == "config.toml":
        changed = mutate_tree(tomlkit.parse(data.decode()).unwrap(), rng)
        with contextlib.suppress(Exception):  # what TOML cannot say
            data = tomlkit.dumps(changed).encode(errors="surrogatepass")
    else:
        data = (
            patched_zip(data, rng)
            if rng.random() < 0.4
            else mutate_bytes(data, rng, [b"'shape': (9999999999,)", b"|O"])
        )
    for other, content in files.items():
        (path / other).write_bytes(data if other == name else content)
    if name == "ground.json":
        read_camera_geometry(path)
    elif name in ("uncertainty.json", "novelty.npz"):
        uncertainty = read_uncertainty(path)
        assert uncertainty is not None
        footage = one_sequence(store.sequences[0], 3)
        uncertainty.predictions(np.ones((3, 4)), None, footage, IntervalOptions(0.8, 1.0))
    else:
        found, _ = find_runs(folder)
        tables = boards(found)
        assert leaderboard_text(tables, folder) is not None and leaderboard_html(tables, folder)
        results = read_results(path)
        metrics_table(results.metrics)
        assert run_card(path.name, results.metrics)
        render_page(results, store)  # type: ignore[arg-type]


@cache
def keras_models() -> tuple[Any, dict[str, bytes], dict[str, bytes]]:
    """A small model, and the parts of its `.keras` and its weights file."""
    import keras

    inputs = keras.Input((8, 6), name="x")
    x = keras.layers.LSTM(3)(inputs)
    x = keras.layers.BatchNormalization()(keras.layers.Dense(4, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.1)(x)))
    with tempfile.TemporaryDirectory() as name:
        model.save(Path(name) / "m.keras")
        model.save_weights(Path(name) / "m.weights.h5")
        with zipfile.ZipFile(Path(name) / "m.keras") as file:
            parts = {entry: file.read(entry) for entry in file.namelist()}
        return model, parts, {"weights": (Path(name) / "m.weights.h5").read_bytes()}


GADGETS: tuple[dict[str, Any], ...] = (
    {"class_name": "Lambda", "module": "keras.layers", "registered_name": None,
     "config": {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA=",
     "defaults": None}}}},
    {"class_name": "function", "config": "system", "module": "os", "registered_name": "system"},
    {"class_name": "Popen", "config": {"args": "id"}, "module": "subprocess", "registered_name": "Popen"},
    {"class_name": "function", "config": "get_file", "module": "keras.utils", "registered_name": "get_file"},
    {"class_name": "TFSMLayer", "config": {"filepath": "/home"}, "module": "keras.layers", "registered_name": None},
    {"class_name": "Dense", "config": {"units": 2**31 - 1, "name": "big"}, "module": "keras.layers",
    "registered_name": None},
    {"class_name": "Embedding", "config": {"input_dim": 10**9, "output_dim": 10**4}, "module": "keras.layers",
     "registered_name": None, "build_config": {"input_shape": [None, 3]}},
    {"class_name": "RepeatVector", "config": {"n": 10**9}, "module": "keras.layers", "registered_name": None},
    {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}, "module": "keras.layers",
    "registered_name": None},
    {"class_name": "__numpy__", "config": {"value": [1], "dtype": "O"}},
    {"class_name": "__typespec__", "spec_name": "TensorSpec", "module": "tensorflow", "registered_name": None,
    "config": []},
    {"class_name": "TorchModuleWrapper", "config": {"module": {"class_name": "__bytes__"}}, "module": "keras.layers"},
)  # fmt: skip


@kind
def keras_file(rng: random.Random, folder: Path) -> None:
    from stage2_temporal.training.keras_models import load_model

    _, parts, _ = keras_models()
    parts = dict(parts)
    match rng.randrange(4):
        case 0 | 1:
            config = json.loads(parts["config.json"])
            parts["config.json"] = json.dumps(
                mutate_tree(config, rng, (*GADGETS, *GADGETS, 10**9, -5, None, "x", [], {}))
            ).encode()
        case 2:
            parts["model.weights.h5"] = mutate_bytes(parts["model.weights.h5"], rng)
        case 3:
            name = rng.choice(sorted(parts))
            parts[name] = mutate_bytes(parts[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
    data = stream.getvalue()
    match rng.randrange(6):
        case 0:
            data = patched_zip(data, rng)
        case 1:
            data = mutate_bytes(data, rng)
    (folder / "model.keras").write_bytes(data)
    load_model(folder)


@kind
def weights_h5(rng: random.Random, folder: Path) -> None:
    from stage1_extract.backbone.registry import _load_file

    model, _, files = keras_models()
    for other in folder.glob("*.weights.h5"):
        other.unlink()
    path = folder / f"{rng.randrange(1 << 60)}.weights.h5"  # a new one, since Keras may have left the last one open
    path.write_bytes(files["weights"])
    if rng.random() < 0.5:
        change_h5(path, rng)
    else:
        path.write_bytes(mutate_bytes(files["weights"], rng))
    _load_file(model, path, "Tiny")


def change_h5(path: Path, rng: random.Random) -> None:
    """Replace a weight by a dataset of another shape, type or place, or by a link."""
    import h5py

    with h5py.File(path, "r+") as f:
        names: list[str] = []
        f.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = rng.choice(names)
        del f[name]
        match rng.randrange(8):
            case 0:
                f.create_dataset(name, (1 << 33,), "f4", chunks=(1 << 20,), compression="gzip")
            case 1:
                f[name] = h5py.ExternalLink("/etc/passwd", "/x")
            case 2:
                f[name] = h5py.SoftLink("/" + rng.choice(names))
            case 3:
                f.create_dataset(name, (3,), "f4", external=[("/etc/passwd", 0, 12)])
            case 4:
                f[name] = rng.choice(("text", 5, [1, 2], np.zeros(3, "c8"), np.zeros((2, 0)), np.full(6, np.nan)))
            case 5:
                f[name] = h5py.SoftLink(name)
            case 6:
                f[name] = f[name.split("/")[0]]
            case 7:
                layout = h5py.VirtualLayout((3,), "f4")
                layout[:] = h5py.VirtualSource("/etc/passwd", "x", (3,))
                f.create_virtual_dataset(name, layout)


def main() -> None:
    faulthandler.enable()
    name, first, *last = sys.argv[1:]
    numbers = range(int(first), int(last[0]) if last else int(first) + 1)
    with tempfile.TemporaryDirectory() as folder:
        cv2.setNumThreads(1)
        load_libraries(name)
        for number in numbers:
            # the number is known even where a library in C takes the process down
            print(json.dumps({"at": number}), flush=True) if number % 10 == 0 or len(numbers) == 1 else None
            with bounded_memory():
                if found := check(name, number, Path(folder)):
                    print(json.dumps({"number": number, "found": found}), flush=True)
    print(
        json.dumps({**OUTCOMES, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "cpu": sum(os.times()[:2])})
    )
