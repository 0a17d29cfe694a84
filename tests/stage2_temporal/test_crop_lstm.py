"""`crop_lstm` on rendered vehicles: from the store, fused, in `predict` and the report, alone and with the box."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from features.config import Config, read_config, read_run_config
from features.errors import ConfigError
from features.store import Store
from stage1_extract.datasets import scan
from stage1_extract.extract import extract
from stage1_extract.sample import render_sample_set
from stage2_temporal.data.examples import load_examples
from stage2_temporal.data.task import read_task
from stage2_temporal.fused.export import export_run
from stage2_temporal.fused.fuse import fuse_run
from stage2_temporal.heads.crops import CropLSTM
from stage2_temporal.predict import predict
from stage2_temporal.report.clips import FRAME_WIDTH, report_clip
from stage2_temporal.runs.results import read_metrics, read_results
from stage2_temporal.runs.submission import write_submission_files
from stage2_temporal.train import evaluate, train
from tests.helpers import ROOT
from tests.image_runs import read_rows

SIZE = 48  # px across a crop, fewer than the config's


def crops_config(data: Path, **head: object) -> Config:
    """The config of the sample set's vehicles, with smaller crops."""
    value = read_config(ROOT / "configs/sample-vehicles.toml").model_dump()
    value["data"]["path"] = str(data)
    value["frames"] |= {"width": SIZE, "height": SIZE}
    value["extract"] |= {"dtype": "float32"}
    value["head"] |= head
    value["train"] |= {"epochs": 5}  # the linear model before the LSTM is fitted in one step
    return Config.model_validate(value)


def train_run(config: Config, store: Path, run: Path) -> Path:
    with Store(store) as opened:
        train(config, opened, read_task(config, opened), run, report=False)
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered clips in `data`, the store `s.h5` of their vehicles, and the run `runs/crops`."""
    folder = tmp_path_factory.mktemp("home")
    render_sample_set(folder / "data", seed=0, train=12, validation=0, test=8, workers=1)
    config = crops_config(folder / "data")
    extract(config, folder / "s.h5", scan(config.data))
    train_run(config, folder / "s.h5", folder / "runs/crops")
    return folder


@pytest.fixture
def run(home: Path) -> Path:
    return home / "runs/crops"


def test_velocity_of_other_vehicles_is_predicted_from_their_crops(run: Path) -> None:
    metrics = read_metrics(run)
    test = metrics.splits["test"]
    print(f"{test.examples} test vehicles, skill {test.model.skill:.3f}")
    assert test.examples == 15 and test.model.skill > 0.8
    assert test.model.rmse < test.constant.rmse / 2


def test_store_has_each_vehicle_with_its_taps(home: Path) -> None:
    with Store(home / "s.h5") as store:
        shapes = {name: info.shape for name, info in store.streams.items()}
        vehicles = {s.id.rsplit("/", 1)[0] for s in store.sequences}
        assert len(store.sequences) > len(vehicles)  # some clips show several
        assert all(s.region is not None and s.length == 8 for s in store.sequences)
    expected = {"appearance": (SIZE // 8, SIZE // 8, 40), "block2b_add": (SIZE // 4, SIZE // 4, 24)}
    assert shapes == expected | {"block1a_project_bn": (SIZE // 2, SIZE // 2, 16)}


@pytest.mark.soak
def test_fused_model_equals_the_two_stages(home: Path, run: Path) -> None:
    with Store(home / "s.h5") as store:
        model, check = fuse_run(run, store)
    assert check.head.relative <= 1e-4 and check.output.relative <= 1e-4
    assert {tensor.name: tensor.shape[1:] for tensor in model.inputs}["frames"] == (8, SIZE, SIZE, 3)


def test_data_set_predictions_equal_those_of_the_run_also_for_unknown_velocities(
    home: Path, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(home / "data/Test", tmp_path / "data/Test")
    shutil.copy(home / "data/calibration.txt", tmp_path / "data/calibration.txt")
    annotation = tmp_path / "data/Test/Test/1/annotation.json"
    annotation.write_text(json.dumps([{"bbox": note["bbox"]} for note in json.loads(annotation.read_text())]))
    files = predict(run, tmp_path / "data", tmp_path / "out.csv")
    rows = read_rows(tmp_path / "out.csv")
    expected = [row for row in read_rows(run / "predictions.csv") if row["split"] == "test"]
    assert files.windows == len(rows) == len(expected)
    assert {r["sequence"] for r in rows if r["vx_true"] == ""} == {"Test/1/1"}
    for a, b in zip(rows, expected, strict=True):
        assert all(a[name] == b[name] for name in ("sequence", "label", "frame"))
        assert float(a["vx_pred"]) == pytest.approx(float(b["vx_pred"]), abs=1e-3)
        assert float(a["vy_pred"]) == pytest.approx(float(b["vy_pred"]), abs=1e-3)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["saved_model", "onnx", "litert"])
def test_exported_model_equals_that_of_keras(name: str, home: Path, run: Path) -> None:
    with Store(home / "s.h5") as store:
        ((path, difference),) = export_run(run, store, read_run_config(run), [name])
    assert path.exists() and difference <= 1e-4


@pytest.mark.soak
def test_evaluate_repeats_the_predictions_and_writes_the_report(home: Path, run: Path) -> None:
    before = read_rows(run / "predictions.csv")
    with Store(home / "s.h5") as store:
        evaluate(run, store)
    assert (run / "report.html").is_file()
    for old, new in zip(before, read_rows(run / "predictions.csv"), strict=True):
        assert float(new["vx_pred"]) == pytest.approx(float(old["vx_pred"]), abs=1e-4)


def test_boxes_in_the_report_are_inside_the_pictures_of_the_crops(home: Path, run: Path) -> None:
    with Store(home / "s.h5") as store:
        for example in read_results(run).verdict_examples:
            clip = report_clip(example, store)
            (left, top, right, bottom), label = store.sequences[store.index(example.sequence)].region, example.label
            assert clip.height == pytest.approx(FRAME_WIDTH * (bottom - top) / (right - left))
            box = clip.boxes[-1]
            assert box is not None  # the label's, with an eighth of its size free on each side
            margins = (box[0], FRAME_WIDTH - box[0] - box[2], box[1], clip.height - box[1] - box[3])
            share = (*[margin / box[2] for margin in margins[:2]], *[margin / box[3] for margin in margins[2:]])
            assert share == pytest.approx((0.125,) * 4, abs=0.08), (example.sequence, label)


@pytest.mark.soak
def test_tracked_box_can_be_added(home: Path, tmp_path: Path) -> None:
    run = train_run(crops_config(home / "data", box=True), home / "s.h5", tmp_path / "both")
    alone, both = (read_metrics(folder).splits["test"].model for folder in (home / "runs/crops", run))
    print(f"skill with the box {both.skill:.3f}, without {alone.skill:.3f}")
    assert both.skill > 0.7


def test_single_video_is_refused(home: Path, run: Path) -> None:
    frames = home / "data/Test/Test/1/imgs"
    with pytest.raises(ConfigError, match=r"crops of labelled vehicles.*got one video.*Try: --input DATA_SET"):
        predict(run, frames)
    with pytest.raises(ConfigError, match=r"crops of labelled vehicles"):
        predict(run, frames, boxes=home / "boxes.csv")


def test_store_of_whole_frames_is_refused(home: Path, tmp_path: Path) -> None:
    config = crops_config(home / "data")
    value = config.model_dump()
    value["data"] |= {"crops": None, "path": str(tmp_path / "data")}
    value["backbone"] |= {"taps": ()}
    value["head"] |= {"streams": ("appearance",)}
    whole = Config.model_validate(value)
    (tmp_path / "data/Train").mkdir(parents=True)
    (tmp_path / "data/Train/Train").symlink_to(home / "data/Train/Train")
    catalogue = scan(whole.data)
    extract(whole, tmp_path / "s.h5", type(catalogue)(catalogue.clips[:1]))
    X, y, _ = load_examples(tmp_path / "s.h5", whole)
    with pytest.raises(ConfigError, match=r"needs the vehicles' crops.*got whole frames.*Try: --data\.crops 1\.25"):
        CropLSTM.from_config(whole).fit(X, y)
    with pytest.raises(ValueError, match="crop_lstm expects StoreExamples"):
        CropLSTM().fit(X.stream("appearance"), y)


def test_crops_give_no_submission_files(home: Path, run: Path, tmp_path: Path) -> None:
    config = read_run_config(run)
    with Store(home / "s.h5") as store:
        examples = read_task(config, store).examples
        for layout in ("competition", "tusimple"):
            assert write_submission_files(tmp_path, layout, examples, examples.targets, store.sequences) == []
    assert list(tmp_path.iterdir()) == []
