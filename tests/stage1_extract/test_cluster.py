"""Extraction and sweeps on a real Dask cluster: a scheduler and workers, processes of this machine."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from distributed import Client

from features._common.cluster import connect
from features.config import ComputeConfig, Config
from features.errors import BadInputs, ConfigError
from features.frame_files import shard_folder
from features.frame_ranges import FrameRange
from features.store import Store
from features.strict_model import read_toml
from framebank.cli import main
from stage1_extract.backbone.registry import load_backbone
from stage1_extract.cluster_tasks import joined_groups
from stage1_extract.datasets import scan
from stage1_extract.datasets.clip import Catalogue
from stage1_extract.extract import extract
from stage1_extract.plan import Group
from stage2_temporal.report.leaderboard_page import leaderboard_text
from stage2_temporal.runs.leaderboard import boards, read_run
from stage2_temporal.runs.results import read_metrics
from stage2_temporal.sweep.runner import run_sweep
from stage2_temporal.sweep.search import run_search
from stage2_temporal.sweep.spec import Sweep, search_spaces, sweep_entries
from tests.cluster_helpers import DeadlySource, LocalDask, local_dask
from tests.extraction_helpers import extraction_config, store_content
from tests.helpers import ROOT, write_clips

SHARDS = 2 * 22  # of 352 frames in groups of 16, two streams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, weights, and `local.h5`, the store that a local extraction makes of them."""
    folder = tmp_path_factory.mktemp("cluster")
    write_clips(folder / "data", {"Train": 40, "Test": 4})
    untrained = extraction_config(folder / "data")
    load_backbone(untrained.backbone, untrained.frames).model.save_weights(folder / "w.weights.h5")
    config = local_config(folder)
    extract(config, folder / "local.h5", scan(config.data))
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[LocalDask]:
    with local_dask(folder / "dask") as cluster:
        yield cluster


def local_config(folder: Path) -> Config:
    config = extraction_config(folder / "data", engine="tensorflow")
    return config.with_settings({"backbone.weights": str(folder / "w.weights.h5")})


def on_cluster(config: Config, cluster: LocalDask, **settings: object) -> Config:
    compute = {"backend": "dask", "scheduler": str(cluster.scheduler_file), **settings}
    return config.with_settings({f"compute.{key}": value for key, value in compute.items()})


def shards(store: Path) -> dict[str, tuple[int, int]]:
    """Each finished shard with its inode and time of modification, which show whether it was written again."""
    stats = {path.name: path.stat() for path in shard_folder(store).glob("[!.]*.h5")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def assert_same_frames(path: Path, other: Path) -> None:
    """Two stores, packed or not, have equal frames, thumbnails and tracks."""
    with Store(path) as a, Store(other) as b:
        assert (a.sequences, a.streams, a.header) == (b.sequences, b.streams, b.header)
        for name in a.streams:
            np.testing.assert_array_equal(a.read(name, range(a.frames)), b.read(name, range(b.frames)))
        assert [a.thumbnail(i) for i in range(a.frames)] == [b.thumbnail(i) for i in range(b.frames)]
        tracks = b.tracks()
        assert list(a.tracks()) == list(tracks)
        for key, track in a.tracks().items():
            np.testing.assert_array_equal(track.boxes, tracks[key].boxes)
            np.testing.assert_array_equal(track.confidence, tracks[key].confidence)


def test_every_dataset_equals_that_of_the_local_store(folder: Path, cluster: LocalDask) -> None:
    config = on_cluster(local_config(folder), cluster, workers=2)
    result = extract(config, folder / "a.h5", scan(config.data))
    assert (result.extracted, result.flows, result.tracks) == (352, 352, 44)
    assert store_content(folder / "a.h5") == store_content(folder / "local.h5")
    assert not shard_folder(folder / "a.h5").exists()
    assert extract(config, folder / "a.h5", scan(config.data)).extracted == 0


def test_workers_that_die_and_join_change_nothing(folder: Path, cluster: LocalDask) -> None:
    store, finished = folder / "b.h5", {}

    def replace_workers() -> None:
        first, second = cluster.workers[:2]
        wait_for(lambda: len(shards(store)) >= 4)
        first.kill()  # the second one goes on
        finished.update(shards(store))
        wait_for(lambda: len(shards(store)) >= SHARDS // 2)
        second.kill()
        finished.update(shards(store))
        cluster.add_worker()
        cluster.add_worker()

    thread = threading.Thread(target=replace_workers)
    thread.start()
    config = on_cluster(local_config(folder).with_settings({"extract.shard": 16, "extract.packed_gb": 0.0}), cluster)
    extract(config, store, scan(config.data))
    thread.join()
    assert_same_frames(store, folder / "local.h5")
    after = shards(store)
    assert len(after) == SHARDS and len(finished) < SHARDS
    assert {name: after[name] for name in finished} == finished


@pytest.mark.soak  # without a cluster, tests/faults kills commands
def test_after_the_driver_was_killed_the_same_command_goes_on(folder: Path, cluster: LocalDask) -> None:
    store, config = folder / "c.h5", folder / "c.toml"
    settings = {"extract.shard": 16, "extract.packed_gb": 0.0}
    config.write_text(on_cluster(local_config(folder), cluster, workers=2).with_settings(settings).to_toml())
    arguments = ["extract", "--config", str(config), "--store", str(store)]
    with subprocess.Popen(
        [sys.executable, "-m", "framebank", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as driver:
        wait_for(lambda: len(shards(store)) >= SHARDS // 2)
        driver.kill()
    finished = shards(store)
    assert len(finished) < SHARDS
    assert main(arguments) == 0
    after = shards(store)
    assert {name: after[name] for name in finished} == finished
    assert_same_frames(store, folder / "local.h5")


def test_a_worker_fits_the_principal_components_that_a_local_extraction_does(folder: Path, cluster: LocalDask) -> None:
    settings = {"extract.keep": "pca 3", "extract.motion": False, "extract.tracks": False}
    config = local_config(folder).with_settings(settings)
    extract(config, folder / "here.h5", scan(config.data))
    extract(on_cluster(config, cluster, workers=2), folder / "there.h5", scan(config.data))
    assert store_content(folder / "there.h5") == store_content(folder / "here.h5")
    with Store(folder / "there.h5") as store:
        assert store.streams["appearance"].shape == (3,) and store.recipe.basis


def test_a_worker_of_another_version_is_refused(folder: Path, cluster: LocalDask) -> None:
    info = folder / "other/framebank-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: framebank\nVersion: 9.9\n")
    worker = cluster.add_worker({"PYTHONPATH": f"{info.parent}{os.pathsep}{ROOT}"})
    config = on_cluster(local_config(folder), cluster, workers=3)
    try:
        with pytest.raises(BadInputs, match=r"worker tcp://\S+ has framebank 9\.9; expected "):
            extract(config, folder / "d.h5", scan(config.data))
    finally:
        worker.kill()
        worker.wait()
    assert not (folder / "d.h5").exists()


def test_workers_that_see_other_files_are_refused(folder: Path, cluster: LocalDask) -> None:
    compute = on_cluster(Config(), cluster).compute
    with (
        pytest.raises(BadInputs, match=r"worker tcp://\S+ sees other files than the driver"),
        connect(compute, folder / "shared", (os.getpid, ())),
    ):
        pass


SWEEP = """
[sweep]
folds = 2
jobs = 2
reports = 0
[[entries]]
"head.name" = ["pooled_lstm", "ridge"]
[[entries]]
"head.name" = "pooled_lstm"
"head.units" = 5
"train.learning_rate" = 1e30
"""


SEARCH = """
[sweep]
name = "search"
search = "optuna"
pruner = "none"
folds = 2
reports = 0

[[entries]]
draws = 2
"head.name" = "pooled_lstm"
"head.units" = 4
"train.learning_rate" = { low = 1e-4, high = 0.1, log = true }
"""


def test_a_sweep_gives_the_local_leaderboard(folder: Path, cluster: LocalDask) -> None:
    settings = {"train.epochs": 3, "data.target": "ego_speed", "head.units": 8}
    config = local_config(folder).with_settings(settings)
    (folder / "sweep.toml").write_text(SWEEP)
    sweep = read_toml(Sweep, folder / "sweep.toml")
    results = []
    for name, base in [("here", config), ("there", on_cluster(config, cluster))]:
        runs = folder / name
        results.append(run_sweep(sweep.sweep, sweep_entries(sweep, base), folder / "local.h5", runs))
    here, there = results
    assert here.names == there.names and len(here.names) == 4
    assert len(here.failed) == len(there.failed) == 2
    for name in here.names:
        local, remote = read_metrics(here.folder / name), read_metrics(there.folder / name)
        assert local.splits == remote.splits
    tables = [leaderboard_text(boards([read_run(r.folder / n) for n in r.names]), r.folder) for r in results]
    local_table, cluster_table = (re.sub(r" +[0-9.]+ s ", "", table) for table in tables)
    assert "pooled_lstm" in local_table and local_table == cluster_table  # but for the seconds


@pytest.mark.soak
def test_a_search_tries_and_finds_on_the_cluster_what_it_does_here(folder: Path, cluster: LocalDask) -> None:
    pytest.importorskip("optuna")
    config = local_config(folder).with_settings({"train.epochs": 2, "data.target": "ego_speed"})
    (folder / "search.toml").write_text(SEARCH)
    search = read_toml(Sweep, folder / "search.toml")
    here, there = (
        run_search(search.sweep, search_spaces(search, base), base, folder / "local.h5", folder / name)
        for name, base in [("searched here", config), ("searched there", on_cluster(config, cluster))]
    )
    assert here.names == there.names and len(here.names) == 4 and not here.failed and not there.failed
    for name in here.names:
        assert read_metrics(here.folder / name).splits == read_metrics(there.folder / name).splits


def test_no_scheduler_is_an_error_that_names_its_address(tmp_path: Path) -> None:
    compute = ComputeConfig(backend="dask", scheduler=str(tmp_path / "none.json"))
    with (
        pytest.raises(ConfigError, match=r"none\.json: no Dask scheduler"),
        connect(compute, tmp_path / "x", (str, ())),
    ):
        pass


def test_a_sequence_that_kills_its_workers_is_a_fault_and_the_rest_goes_on(folder: Path, cluster: LocalDask) -> None:
    """The last test of this cluster, which then has one worker."""
    config = local_config(folder).with_settings({"extract.shard": 64, "extract.skip_damaged": True})
    catalogue = scan(config.data)
    deadly = replace(catalogue.clips[20], source=DeadlySource(catalogue.clips[20].source, os.getpid()))
    with Client(scheduler_file=str(cluster.scheduler_file)) as client:  # a task that kills a worker is not tried again
        client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    clips = (*catalogue.clips[:20], deadly, *catalogue.clips[21:])
    result = extract(on_cluster(config, cluster, workers=2), folder / "e.h5", Catalogue(clips))
    assert len(result.missing) == 8  # those of the same task
    assert result.missing["Train/21"].startswith("Train/21: a worker died while working on it, or on another sequence")
    with Store(folder / "e.h5") as store:
        assert len(store.sequences) == 36


def test_consecutive_groups_are_joined_up_to_a_size() -> None:
    def group(*ranges: tuple[str, int, int], streams: tuple[str, ...] = ("a",)) -> Group:
        return Group(streams, tuple(FrameRange(name, "digest", start, stop) for name, start, stop in ranges))

    groups = [
        group(("x", 0, 4)),
        group(("x", 4, 8)),
        group(("x", 8, 9), ("y", 0, 2)),
        group(("y", 2, 4), streams=("b",)),
    ]
    sizes = iter([8, 3, 100])
    assert list(joined_groups(groups, lambda: next(sizes))) == [group(("x", 0, 8)), *groups[2:]]
    assert list(joined_groups(groups, lambda: 0)) == groups


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_forty_kills_of_drivers_and_workers_change_nothing(folder: Path, tmp_path: Path) -> None:
    write_clips(tmp_path / "data", {"Train": 200})
    config = local_config(folder).with_settings({"data.path": str(tmp_path / "data")})
    extract(config, tmp_path / "local.h5", scan(config.data))
    rng, kills, runs = random.Random(0), {"driver": 0, "worker": 0}, 0
    with local_dask(tmp_path / "dask") as cluster:
        settings = {"extract.shard": 8, "extract.packed_gb": 0.0, "extract.motion": True}
        (tmp_path / "c.toml").write_text(on_cluster(config, cluster).with_settings(settings).to_toml())
        while sum(kills.values()) < 40:
            runs += 1
            extract_with_kills(cluster, tmp_path / "c.toml", tmp_path / f"{runs}.h5", kills, rng)
            assert_same_frames(tmp_path / f"{runs}.h5", tmp_path / "local.h5")
            shutil.rmtree(shard_folder(tmp_path / f"{runs}.h5"))
    print(f"{kills['driver']} kills of drivers, {kills['worker']} of workers, {runs} complete runs")
    assert min(kills.values()) >= 10


def extract_with_kills(
    cluster: LocalDask, config: Path, store: Path, kills: dict[str, int], rng: random.Random
) -> None:
    """Run the command until it succeeds; kill its process or a worker at random moments.

    No shard is written twice but those of the two tasks that were under way when a driver was killed.
    """
    command = [sys.executable, "-m", "framebank", "extract", "--config", str(config), "--store", str(store)]
    under_way = 0  # shards that workers of an earlier driver may have been writing
    while True:
        at_start = seen = shards(store)
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as driver:
            while driver.poll() is None:
                try:
                    driver.wait(rng.uniform(0.0, 6.0))
                except subprocess.TimeoutExpired:
                    if sum(kills.values()) >= 40:
                        continue
                    victim = driver if rng.random() < 0.5 else rng.choice(cluster.workers)
                    victim.kill()
                    victim.wait()
                    kills["driver" if victim is driver else "worker"] += 1
                    if victim is not driver:
                        cluster.workers.remove(victim)
                        cluster.add_worker()
                    seen = {**shards(store), **seen}
            errors = driver.stderr.read().decode() if driver.stderr else ""
        now = shards(store)
        assert at_start.items() <= now.items()
        assert seen.keys() <= now.keys() and len(seen.items() - now.items()) <= under_way
        if driver.returncode == 0:
            return
        assert driver.returncode == -signal.SIGKILL, errors
        under_way = 2 * 2  # two workers, two streams
