"""The engine for a store: its precision, if that is to be the fastest, and its quantised network in int8."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from features._common.console import logger, quiet_imports
from features._common.types import Image
from features.config import Config
from features.errors import ConfigError, StoreError
from features.frame_files import shard_folder
from features.hdf5 import damage_as_store_error, open_file
from features.principal_components import PCABasis
from features.recipe import Recipe
from features.store_tables import Header, read_header
from stage1_extract.datasets.clip import Clip
from stage1_extract.engines.quantised_network import QuantisedNetwork

if TYPE_CHECKING:  # loading TensorFlow takes seconds, which an extraction with nothing to do need not wait for
    from stage1_extract.backbone.trunk import Trunk
    from stage1_extract.engines.engine import Engine

FASTEST = "fastest"
TIMED_FRAMES, TIMED_ROUNDS = 10, 3

_told: set[str] = set()  # warnings that this process has given


def stored_recipe(store: Path, header: Header | None) -> Recipe | None:
    """The recipe of a store with this header, or else of the shards that an interrupted extraction has left."""
    if header is not None:
        return header.recipe
    for path in sorted(shard_folder(store).glob("[!.]*.h5")):
        try:
            with open_file(path) as f, damage_as_store_error(path):
                return read_header(f).recipe
        except StoreError:
            continue
    return None


def decide_precision(config: Config, store: Path, stored: Recipe | None, clips: Sequence[Clip]) -> Config:
    """Replace `precision = "fastest"` by the stored frames' precision, or else by what is fastest on this machine.

    Raises:
        ConfigError: it is to be measured for the machines of a cluster.
        DataError: no frame can be decoded.
    """
    if config.extract.precision != FASTEST:
        return config
    if stored is None and config.compute.backend != "local":
        raise ConfigError(
            "the fastest precision is measured on one machine, but a cluster has several",
            hint="--extract.precision float32, bfloat16 or int8",
        )
    precision = stored.precision if stored is not None else _fastest(config, store, clips)
    return config.with_settings({"extract.precision": precision})


def new_engine(config: Config, store: Path, stored: Recipe | None, clips: Sequence[Clip]) -> Engine:
    """Load the trunk and its engine; in int8, with the store's quantised network, which is made if it has none yet.

    Args:
        stored: the recipe of the store; None: there is none yet.
        clips: those to calibrate the network on; without any, it must be there.

    Raises:
        ConfigError: this machine lacks the engine or the precision.
        StoreError: the store's quantised network is missing or damaged.
    """
    with quiet_imports():
        from stage1_extract.backbone.onnx_trunk import any_trunk
        from stage1_extract.backbone.trunk import Trunk
        from stage1_extract.engines.engine import Engine
        from stage1_extract.engines.gpu import unused_card
    if config.extract.engine != "openvino" and (why := unused_card()) is not None and why not in _told:
        _told.add(why)
        logger.warning(why)
    if config.components and config.extract.precision == "int8":
        what = "extract.keep: principal components are not computed in int8"
        raise ConfigError(what, hint="--extract.precision bfloat16")
    trunk, network = any_trunk(config), None
    if config.extract.precision == "int8" and isinstance(trunk, Trunk):
        network = _network(trunk, config, store, stored, clips)
    return Engine(trunk, config.extract.batch, config.extract.engine, network)


def projected_engine(config: Config, engine: Engine, bases: Mapping[str, PCABasis]) -> Engine:
    """The engine of the same trunk with its maps projected on principal components."""
    with quiet_imports():
        from stage1_extract.backbone.trunk import Trunk
        from stage1_extract.engines.engine import Engine
    assert isinstance(engine.trunk, Trunk)  # others have been refused
    return Engine(engine.trunk.projected(bases), config.extract.batch, config.extract.engine)


def _network(
    trunk: Trunk, config: Config, store: Path, stored: Recipe | None, clips: Sequence[Clip]
) -> QuantisedNetwork | None:
    from stage1_extract.engines import quantisation

    path = quantisation.network_path(store, trunk)
    if stored is not None and replace(stored, quantised="") != replace(trunk.recipe, weights=stored.weights):
        return None  # it is of another recipe, which the extraction refuses
    if path.exists() or stored is not None or not clips:
        return QuantisedNetwork.load(path)
    quantisation.check_installed()
    frames = quantisation.calibration_frames(clips, config.frames)
    logger.info(f"{path}: quantising the network, calibrated on {len(frames)} frames")
    network = quantisation.quantise(trunk, frames)
    network.save(path)
    return network


def _fastest(config: Config, store: Path, clips: Sequence[Clip]) -> str:
    """Measure the precisions that this machine has, and log the rates."""
    with quiet_imports():
        from stage1_extract.engines import quantisation
        from stage1_extract.engines.gpu import capabilities, gpu_precisions

    networks = set(store.parent.glob(f"{store.name}.int8-*"))
    frames = quantisation.calibration_frames(clips, config.frames, TIMED_FRAMES)
    rates: dict[str, float] = {}
    for precision in dict.fromkeys([*gpu_precisions(capabilities()), "bfloat16", "int8"]):
        trial = config.with_settings({"extract.precision": precision})
        try:
            engine = new_engine(trial, store, None, clips)
            engine(frames)  # compiles, and measures the relative error
            seconds = min(_seconds(engine, frames) for _ in range(TIMED_ROUNDS))
        except ConfigError as e:
            logger.info(f"precision {precision} is not measured: {e}")
            continue
        rates[precision] = len(frames) / seconds
    fastest = max(rates, key=lambda name: rates[name])
    if fastest != "int8":
        for path in set(store.parent.glob(f"{store.name}.int8-*")) - networks:
            path.unlink()
    listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    logger.info(f"{store}: the fastest precision is {fastest} (frames per second: {listed})")
    return fastest


def _seconds(engine: Engine, frames: Image) -> float:
    started = time.perf_counter()
    engine(frames)
    return time.perf_counter() - started
