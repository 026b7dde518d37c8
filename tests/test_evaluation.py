import csv
import itertools
import json
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from patchform import cli
from patchform.backbones.base import Backbone
from patchform.data.collate import collate
from patchform.errors import DataError, ModelFileError, ResourceError
from patchform.evaluation import evaluate, evaluate_run, loss_of
from patchform.heads.linear import Linear
from patchform.metrics.accuracy import Accuracy
from patchform.model import Model, build_model, save
from patchform.records import Features, Label, Preprocessing, Sample
from patchform.tasks.classification import Classification

NAMES = ("blue", "green", "red")
PREPROCESSING = Preprocessing(size=(32, 32), resize="squash")
COLOURS = {"blue": (20, 30, 220), "green": (20, 220, 30), "red": (220, 30, 20)}


class Stub(Backbone):
    """Mean colours, through a BatchNorm and a dropout that would give themselves away."""

    channels, strides, width = (3,), (1,), 3

    def __init__(self):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def forward(self, images, *, padding=None):
        maps = self.drop(self.norm(images))
        return Features((maps,), (1,), (1, 1), summary=maps.mean((2, 3)))

    def layers(self):
        return [self.norm]


def stub_model():
    torch.manual_seed(0)
    head = Linear(Stub().feature_info, classes=3)
    nn.init.normal_(head.classifier.weight)
    return Model(Stub(), head, classes=NAMES, preprocessing=PREPROCESSING).eval()


def samples(count):
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 3, 32, 32), generator=draw).to(torch.uint8)
    truth = torch.randint(3, (count, 1), generator=draw)
    return [Sample(image, Label(row), f"{i}.png", (32, 32)) for i, (image, row) in enumerate(zip(images, truth))]


def batches(count, size):
    found = samples(count)
    return [collate(found[start : start + size]) for start in range(0, count, size)]


class Names(Accuracy):
    """Remembers scores, image by image."""

    def __init__(self, classes):
        super().__init__(classes)
        self.scores = []

    def update(self, predictions, targets):
        super().update(predictions, targets)
        self.scores += [prediction.scores for prediction in predictions]


def scored(count, size):
    metric = Names(NAMES)
    return evaluate(stub_model(), batches(count, size), Classification(), metric=metric), torch.stack(metric.scores)


@pytest.mark.parametrize("count", [1, 7, 16, 17, 23])
def test_each_sample_counts_once_whatever_the_batch_size(count):
    whole, wanted = scored(count, count)
    assert whole.samples == count
    for size in (1, 4, 16, 32):
        scores, found = scored(count, size)
        assert scores.tables == whole.tables
        assert scores.numbers == pytest.approx(whole.numbers, abs=1e-6)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_nothing_is_changed():
    model = stub_model().train()
    model.backbone.norm.eval()  # frozen: modes differ from module to module
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    random.seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    state = random.getstate()
    loader = torch.utils.data.DataLoader(samples(9), batch_size=4, collate_fn=collate)  # draws a seed when iterated
    scores = evaluate(model, loader, Classification())
    assert torch.equal(torch.rand(3), wanted)
    assert random.getstate() == state
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert scores.numbers == evaluate(model.eval(), loader, Classification()).numbers
    model.train()(batches(9, 9)[0])  # control: training does change the statistics
    model.backbone.norm.train()
    model(batches(9, 9)[0])
    assert not torch.equal(model.backbone.norm.running_mean, before["backbone.norm.running_mean"])


def test_modes_come_back_after_an_error():
    model = stub_model().train()
    with pytest.raises(DataError, match="predictions for 0 targets"):
        evaluate(model, [batches(2, 2)[0]._replace(targets=())], Classification())
    assert all(module.training for module in model.modules())


def test_no_images_and_progress():
    seen = []
    scores = evaluate(stub_model(), [], Classification(), progress=seen.append)
    assert scores.samples == 0
    assert set(scores.numbers.values()) == {None}
    evaluate(stub_model(), batches(9, 4), Classification(), progress=seen.append)
    assert seen == [4, 8, 9]


def test_bfloat16_is_close_and_is_another_arithmetic():
    exact, rough = Names(NAMES), Names(NAMES)
    evaluate(stub_model(), batches(8, 4), Classification(), metric=exact)
    evaluate(stub_model(), batches(8, 4), Classification(), metric=rough, precision="bfloat16")
    assert rough.scores[0].dtype == torch.float32
    torch.testing.assert_close(torch.stack(rough.scores), torch.stack(exact.scores), rtol=0, atol=0.02)
    assert not torch.equal(torch.stack(rough.scores), torch.stack(exact.scores))


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_loss_of_a_set_is_that_of_its_pictures_whatever_the_batches(size):
    model = stub_model().train()
    found = loss_of(model, batches(9, size))
    assert found == pytest.approx(evaluate(model, batches(9, 9), Classification()).numbers["log_loss"], rel=1e-5)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert loss_of(model, []) is None
    model.head.classifier.weight.data.fill_(float("inf"))
    assert loss_of(model, batches(9, size)) is None


# ---------------------------------------------------------------------------------------------------------- run folders


def pictures(folder, counts, seed=0):
    """Noisy pictures of one colour a class."""
    draw = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            noise = draw.integers(-20, 20, (40, 36, 3))
            Image.fromarray((np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)).save(
                folder / name / f"{index}.png"
            )
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(
        "classification", backbone="vit/nano", head="linear", classes=NAMES, preprocessing=PREPROCESSING
    )
    folder = tmp_path_factory.mktemp("run") / "first"
    save(model, folder)
    return folder


def test_a_run_is_scored_and_the_report_written(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 3, "green": 4, "red": 2})
    said, seen = [], []
    (data / "note.txt").write_text("hello")
    scores = evaluate_run(
        run, data, out=tmp_path / "out", batch_size=4, progress=lambda *done: seen.append(done), say=said.append
    )
    assert scores.samples == 9
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert any("1 files" in sentence for sentence in said)
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["numbers"] == scores.numbers
    assert report["samples"] == 9
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["confusion.png", "evaluation.json"]
    assert {"ece", "temperature"} <= set(scores.numbers)


def test_scores_do_not_depend_on_batches_or_workers(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 3, "green": 3, "red": 1})
    found = [
        evaluate_run(run, data, out=tmp_path / "out", batch_size=size, workers=workers)
        for size, workers in itertools.product((1, 4, 32), (0, 1))
    ]
    for scores in found[1:]:
        assert scores.tables["confusion"] == found[0].tables["confusion"]
        assert scores.numbers == pytest.approx(found[0].numbers, abs=1e-5)


def test_classes_are_matched_by_name(run, tmp_path):
    """Data without "blue": the other classes keep their places, and "blue" is not defined rather than 0."""
    data = pictures(tmp_path / "data", {"red": 3, "green": 3})
    whole = pictures(tmp_path / "whole", {"blue": 2, "green": 3, "red": 3})
    scores = evaluate_run(run, data, out=tmp_path / "out")
    table = scores.tables["classes"]
    assert table.rows == NAMES
    assert table.values[0][:2] == [None, 0]
    assert [row[1] for row in table.values] == [0, 3, 3]
    assert scores.numbers["mean_class_accuracy"] == pytest.approx((table.values[1][0] + table.values[2][0]) / 2)
    assert evaluate_run(run, whole, out=tmp_path / "out").tables["classes"].values[0][1] == 2  # control


def test_order_of_the_list_does_not_matter(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 2, "green": 2, "red": 2})
    rows = [f"{name}/{index}.png,{name}" for name in ("red", "blue", "green") for index in range(2)]
    (data / "list.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    by_list = evaluate_run(run, data / "list.csv", out=tmp_path / "out")
    by_folder = evaluate_run(run, data, out=tmp_path / "out")
    assert by_list.numbers == pytest.approx(by_folder.numbers, abs=1e-6)
    assert by_list.tables["confusion"] == by_folder.tables["confusion"]


def test_multiple_labels(tmp_path):
    torch.manual_seed(0)
    options = {"labels": "multi"}
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=NAMES,
        preprocessing=PREPROCESSING,
        head_options=options,
    )
    save(model, tmp_path / "run")
    data = pictures(tmp_path / "data", {"blue": 2, "green": 2})
    (data / "list.csv").write_text("image,labels\nblue/0.png,blue|green\nblue/1.png,blue\ngreen/0.png,green\n")
    scores = evaluate_run(tmp_path / "run", data / "list.csv")
    assert scores.samples == 3
    assert set(scores.numbers) == {"map", "exact"}
    assert scores.tables["classes"].values[2] == [None, 0]


def test_an_unknown_class_is_refused(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 1, "red": 1})
    (data / "red").rename(data / "crimson")
    with pytest.raises(DataError, match="crimson"):
        evaluate_run(run, data, out=tmp_path / "out")


def test_an_unreadable_picture_stops_or_is_counted(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 3, "green": 3, "red": 3})
    (data / "red" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1\.png"):
        evaluate_run(run, data, out=tmp_path / "out")
    assert not (tmp_path / "out" / "evaluation.json").exists()
    said = []
    scores = evaluate_run(run, data, out=tmp_path / "out", skip_bad=0.2, say=said.append)
    assert (scores.samples, scores.numbers["skipped"]) == (8, 1)
    assert any("1.png" in sentence for sentence in said)
    with pytest.raises(DataError, match="cannot be used"):
        evaluate_run(run, data, out=tmp_path / "out", skip_bad=0.05)


def test_what_is_no_run_and_where_nothing_can_be_written(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 1, "red": 1})
    with pytest.raises(ModelFileError):
        evaluate_run(tmp_path, data)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be made"):
        evaluate_run(run, data, out=tmp_path / "taken")


def test_the_run_folder_stays_intact(run, tmp_path):
    data = pictures(tmp_path / "data", {"blue": 1, "green": 1, "red": 1})
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    evaluate_run(run, data)
    evaluate_run(run, data)  # loads again, replaces the report
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"evaluation.json", "confusion.png"}


def test_scores_as_files_for_a_spreadsheet(run, tmp_path, capsys):
    data = pictures(tmp_path / "data", {"blue": 3, "green": 4, "red": 2})
    own = tmp_path / "own"
    shutil.copytree(run, own)
    words = ["evaluate", str(own), "--data", str(data), "--out", str(tmp_path / "s.csv"), "--json"]
    assert cli.main([*words, "--per-picture", str(tmp_path / "p.csv")]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (own / "report.html").is_file()  # the other files stay where they are without --out
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == [*NAMES, "(all)"]
    assert {name: float(rows[-1][name]) for name, value in scores["numbers"].items() if value is not None} == {
        name: value for name, value in scores["numbers"].items() if value is not None
    }
    assert [float(row["images"]) for row in rows] == [3, 4, 2, 9]
    each = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert [row["picture"] for row in each] == sorted(
        f"{name}/{n}.png" for name, k in zip(NAMES, (3, 4, 2)) for n in range(k)
    )
    assert all(row["true_label"] == row["picture"].split("/")[0] for row in each)
    assert all((row["label"] == row["true_label"]) == (float(row["top1"]) == 1) for row in each)
    assert np.mean([float(row["log_loss"]) for row in each]) == pytest.approx(scores["numbers"]["log_loss"], rel=1e-4)
    # what is there may be a list of pictures: it is not written over, and nothing is computed for it
    before = (tmp_path / "s.csv").read_bytes()
    assert cli.main(words) == 5
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "s.csv").read_bytes() == before
    assert cli.main([*words[:4], "--per-picture", str(tmp_path / "nowhere" / "p.csv")]) == 5
    assert "no such folder" in capsys.readouterr().err
