"""What stands beside top-1: chance, classes, calibration, intervals, and another model on the same images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learngene import LearngeneError, evaluate, finetune, save_descendant, scratch, segment
from learngene.data.splits import open_splits
from learngene.recipe.sections import DataSpec
from learngene.training.classification import Baseline, ClassCounts, ClassificationReport, paired
from learngene.training.record import read_result
from learngene.training.scores import TopKCounter, score_from
from pico import CLI, FAST, finetune_fields, make_images, pico_shape

NAMES = ["a", "b", "c"]


def tally() -> TopKCounter:
    """Two of three a and the one b are found, one a is taken for b, there is no c."""
    out = TopKCounter()
    sure = torch.tensor([[0.9, 0.06, 0.04], [0.62, 0.3, 0.08], [0.3, 0.62, 0.08], [0.1, 0.82, 0.08]]).log()
    for part in (slice(0, 3), slice(3, 4)):
        out.add(sure[part], torch.tensor([0, 0, 0, 1])[part])
    return out


@pytest.mark.parametrize("reduce", [None, lambda value, reduction: 2 * value], ids=["one", "two processes"])
def test_a_report_counts_classes_and_confidence(reduce: Any) -> None:
    score = tally().result(reduce, NAMES)
    report, times = score.report, 2 if reduce else 1
    assert report is not None
    assert (score.top1, report.chance, report.majority, report.majority_class) == (75.0, 100 / 3, 75.0, "a")
    assert report.balanced_accuracy == pytest.approx(100 * (2 / 3 + 1) / 2)
    # By bins of the confidence: |0.9 - 1|, |0.62 + 0.62 - 1|, |0.82 - 1|, over four images.
    assert report.calibration_error == pytest.approx(100 * (0.1 + 0.24 + 0.18) / 4, abs=1e-4)
    rows = [(each.name, each.images, each.recall, each.precision) for each in report.classes]
    assert rows == [
        ("a", 3 * times, pytest.approx(200 / 3), 100.0),
        ("b", times, 100.0, 50.0),
        ("c", 0, None, None),
    ]
    assert report.told()[-1].split() == ["c", "0", "-", "-"]
    assert tally().result(reduce).report is None


def test_intervals_are_those_of_drawing_images_again() -> None:
    """Of 100 images with 50 right, 2.5 % of all samples have fewer than 40 right, and as many more than 60."""
    counts = ClassCounts(np.array([60, 40]), np.array([50, 50]), np.array([30, 20]), np.zeros((3, 15)))
    report = counts.report(["a", "b"])
    assert report.interval == (40.0, 60.0)
    # Half of each class, whose recalls spread by sqrt(0.25 / 60) and sqrt(0.25 / 40): the mean by 5.1 points.
    assert report.balanced_interval == (pytest.approx(40, abs=1), pytest.approx(60, abs=1))
    assert report == counts.report(["a", "b"])
    assert report != counts.report(["a", "b"], seed=3)


def test_many_classes_are_not_all_listed() -> None:
    count = np.arange(20)
    report = ClassCounts(count + 20, count + 20, count, np.zeros((3, 15))).report([f"class {i}" for i in count])
    table = report.table()
    assert len(table) == 14
    assert [line.split()[1] for line in table[1:4]] == ["0", "1", "2"]
    assert table[-1] == "(12 of 20 classes, found least)"


def test_two_models_are_compared_image_by_image() -> None:
    found = paired(Baseline("other", np.zeros(0)), alone=8, there=1, right=5, images=20)
    assert (found.top1, found.difference) == (25.0, 35.0)
    assert found.p_value == pytest.approx(2 * (1 + 9) / 2**9)  # at most one of nine, on either side
    low, high = found.interval  # of the mean of 8 ones, 1 minus one and 11 zeros, which spreads by 12.8 points
    assert low == pytest.approx(35 - 25, abs=5.1)
    assert high == pytest.approx(35 + 25, abs=5.1)
    assert paired(Baseline("itself", np.zeros(0)), 0, 0, 5, 20).p_value == 1.0


def test_a_score_survives_its_record_and_old_records_are_read() -> None:
    hits = np.array([True, False, True, False])
    score = tally().result(names=NAMES, baseline=Baseline("other", hits))
    assert score.report is not None
    assert score.report.baseline is not None
    assert (score.report.baseline.only_model, score.report.baseline.only_baseline) == (2, 1)
    assert score_from(json.loads(json.dumps(asdict(score)))) == score
    old = {"top1": 50.0, "top5": 100.0, "loss": 1.0, "images": 4}
    assert score_from(old).main == 50.0


def test_a_run_ends_with_a_report(images: Path, tmp_path: Path, cli: CLI) -> None:
    other = tmp_path / "other"
    save_descendant(scratch(pico_shape(depth=1), seed=5, class_names=["blue", "green", "red"]), other)
    recipe = tmp_path / "recipe.yaml"
    fields = finetune_fields("scratch", images, tmp_path / "run", shape=pico_shape(depth=1).to_dict())
    recipe.write_text(json.dumps(fields | {"baseline": str(other)}))
    done = cli("finetune", recipe)
    assert done.code == 0, done.err
    assert f"against {other}" in done.out
    result = read_result(tmp_path / "run")
    assert result is not None
    judged = evaluate(tmp_path / "run/descendant", {"source": str(images), "workers": 0}, baseline=other)
    assert judged == result.final
    told = cli("eval", tmp_path / "run/descendant", "--data", images, "--baseline", tmp_path / "run/descendant")
    assert "+0.00 points against" in told.out
    assert "p = 1" in told.out
    assert "always 'blue' 33.33 %" in told.out
    as_json = cli("eval", tmp_path / "run/descendant", "--data", images, "--baseline", other, "--json")
    assert json.loads(as_json.out) == json.loads(json.dumps(asdict(judged)))


def test_what_cannot_be_a_baseline(images: Path, tmp_path: Path, cli: CLI) -> None:
    save_descendant(scratch(pico_shape(depth=1)), tmp_path / "model")
    save_descendant(scratch(pico_shape(depth=1), class_names=["a", "b", "c"]), tmp_path / "classes")
    for other, fault in ((tmp_path / "none", "baseline: "), (tmp_path / "classes", "is none of a, b, c")):
        done = cli("eval", tmp_path / "model", "--data", images, "--baseline", other)
        assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
        assert fault in done.err
    assert "--baseline: compares heads" in cli("eval", "x", "--data", images, "--baseline", "y", "--knn").err
    with pytest.raises(LearngeneError, match="the model has a segmentation head"):
        evaluate(scratch(pico_shape(depth=1)), str(images), baseline=segment(scratch(pico_shape(depth=1)), 3))


def test_what_speaks_against_trusting_scores(tmp_path: Path) -> None:
    """Of 12 images 1.96 x 50 / sqrt(12) = 28.3 points; 5 points take (98 / 5)^2 = 384.2 images."""
    root = make_images(tmp_path / "few", train=2, val=4)
    splits = open_splits(DataSpec(source=str(root)))
    (rough,) = splits.cautions()
    assert "12 validation images tell a score to ± 28.3 points (95 %)" in rough
    assert rough.endswith("judge on 385 or more")
    many = splits._replace(val=splits.val.picked(list(range(12)) * 33))
    assert many.cautions() == []
    make_images(root, train=10, classes=("red",))
    (unbalanced,) = open_splits(DataSpec(source=str(root)))._replace(val=many.val).cautions()
    assert "10 training images of 'red' and 2 of 'blue'" in unbalanced


def test_only_a_judgement_for_good_makes_a_report(images: Path) -> None:
    model = scratch(pico_shape(depth=1), seed=1)
    result = finetune(model, data={"source": str(images), "workers": 0}, show=False, **FAST)
    assert isinstance(result.final.report, ClassificationReport)  # type: ignore[union-attr]
    assert all("report" not in entry for entry in result.history)
