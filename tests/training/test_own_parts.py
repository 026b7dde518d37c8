"""Parts of a training that are the user's own: docs/own-parts.md as it stands, equal numbers, and what is refused."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import patchform as pf
from patchform import cli, lookup, own_parts
from patchform.data.transforms import soft
from patchform.errors import ModelFileError, UsageError
from patchform.loggers.base import Logger

PAGE = (Path(__file__).parents[2] / "docs" / "own-parts.md").read_text()
QUICK = {"training": {"epochs": 1, "loggers": []}, "model": {"options": {"width": 24, "depth": 1, "heads": 2}}}
PARTS = ("loss", "augmentation", "optimizer", "schedule")


@pytest.fixture
def nothing_named(monkeypatch):
    """No plug-in yet, and none afterwards."""
    monkeypatch.setattr(lookup, "_plugins", [])
    monkeypatch.setattr(own_parts, "_held", {})
    lookup._files.cache_clear()
    yield
    lookup._files.cache_clear()
    for name in ("losses.focal", "losses.two", "augmentations.grain", "optimizers.lion", "schedules.restarts"):
        sys.modules.pop(f"patchform.{name}", None)
    sys.modules.pop("patchform.loggers.lines", None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("pictures"), count=40)


def trained(pictures, runs, name="run", **sections):
    """A run of a few steps by settings that may be objects."""
    training = {"epochs": 2, "batch_size": 20, "threads": 1, "device": "cpu", "loggers": [], "save_every": 1, "keep": 9}
    sections = {"schedule": {"warmup_epochs": 0}, "training": {}, "augmentation": {}} | sections
    sections["training"] = training | sections["training"]
    recipe = tiny.recipe(pictures, runs, name, augmentation={"crop_scale": (0.5, 1.0)})
    return pf.train(recipe, progress=False, page=False, **sections)


def weights(run):
    return torch.cat([tensor.flatten().float() for tensor in run.model.state_dict().values()])


def test_the_page_as_it_stands(nothing_named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (40, 40, 3), np.uint8)).save(path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    files = {block.partition("\n")[0].removeprefix("# "): block for block in blocks if block.startswith("# mine/")}
    assert len(files) == 5
    for name, block in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(block)
    (commands,) = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    train, resume, predict = (
        shlex.split(line, comments=True)[1:] for line in commands.replace("\\\n", " ").strip().splitlines()
    )
    assert cli.main([*train, "--epochs", "1", "--no-page"]) == 0
    said = capsys.readouterr().err
    assert "loss focal in place of the head's: smoothing 0.1 went with it" in said
    summary = (tmp_path / "runs" / "own" / "summary.txt").read_text()
    for section, name in zip(PARTS, ("losses/focal", "augmentations/grain", "optimizers/lion", "schedules/restarts")):
        assert re.search(rf"{section} +your own: {name.partition('/')[2]}, of {tmp_path}/mine/{name}\.py", summary)
    assert len((tmp_path / "runs/own/lines.txt").read_text().splitlines()) == 1
    assert cli.main([*resume, "--epochs", "2", "--no-page"]) == 0
    assert len((tmp_path / "runs/own/lines.txt").read_text().splitlines()) == 2
    assert cli.main(predict) == 0
    (block,) = [block for block in blocks if not block.startswith("# mine/")]
    block = block.replace("**own)", "page=False, **own)")
    exec(compile(block, "own-parts.md", "exec"), {"__name__": "page"})
    assert "name: python:Signs" in (tmp_path / "runs/objects/recipe.yaml").read_text()
    own_parts._held.clear()  # as in another process
    capsys.readouterr()
    assert cli.main(["train", "runs/objects", "--resume"]) == 2
    assert "the loss squares of this run was a Python object" in capsys.readouterr().err
    assert cli.main(["evaluate", "runs/objects"]) == 0


def test_parts_that_are_those_of_the_package_give_its_numbers(nothing_named, pictures, tmp_path):
    def entropy(raw, targets):
        wanted = torch.stack([soft(target, raw.shape[1]) for target in targets])
        return -(wanted * raw.float().log_softmax(1)).sum(1)

    class Same(torch.optim.SGD):
        def __init__(self, groups, *, lr):
            super().__init__(groups, lr=lr, momentum=0.9)

    def constant(step, length):
        return 1.0

    def unchanged(image):
        return image

    mixed = {"mixup": 0.4, "crop_scale": [0.5, 1.0]}
    theirs = {"schedule": {"name": "constant", "warmup_epochs": 0}, "optimizer": {"name": "sgd", "lr": 0.1}}
    usual = trained(pictures, tmp_path, "usual", augmentation=mixed, **theirs)
    own = {
        "schedule": {"name": constant, "warmup_epochs": 0},
        "optimizer": {"name": Same, "lr": 0.1},
        "augmentation": mixed | {"name": unchanged},
    }
    mine = trained(pictures, tmp_path, "mine", loss=entropy, training={"micro_batch": 7}, **own)
    torch.testing.assert_close(weights(mine), weights(usual), rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "log_loss"):
        assert [row[name] for row in mine.history] == pytest.approx([row[name] for row in usual.history], rel=1e-4)
    assert mine.history[-1]["val_loss"] == pytest.approx(mine.history[-1]["log_loss"], rel=1e-4)  # by the own loss
    for control in ({"loss": lambda raw, targets: 2 * entropy(raw, targets)}, {"schedule": lambda step, length: 0.5}):
        other = trained(
            pictures, tmp_path, f"other{len(list(tmp_path.iterdir()))}", **({"loss": entropy} | own | control)
        )
        assert (weights(other) - weights(usual)).abs().max() > 1e-4


class Momentum(torch.optim.Optimizer):
    """Keeps one tensor a parameter."""

    def __init__(self, groups, *, lr, share: float = 0.5):
        super().__init__(groups, {"lr": lr, "share": share})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(mean.lerp_(parameter.grad.sign(), group["share"]), alpha=group["lr"])


class Forgetful(Momentum):
    """Keeps a number where no checkpoint looks."""

    def step(self, closure=None):
        super().step()
        self.param_groups[0]["share"] *= 0.9


class Counting(Momentum):
    def step(self, closure=None):
        super().step()
        for state in self.state.values():
            state["count"] = state.get("count", 0) + 1


def noise(image):
    return (image + 20 * torch.randn(image.shape)).clamp(0, 255).to(image.dtype)


def test_a_run_goes_on_with_own_parts_to_the_same_bits(nothing_named, pictures, tmp_path):
    own = {"optimizer": {"name": Momentum, "options": {"share": 0.25}}, "augmentation": noise}
    whole = trained(pictures, tmp_path, **own)
    steps = sorted((whole.folder / "checkpoints").glob("step-*"))
    assert len(steps) == 4
    for path in steps[2:]:
        shutil.rmtree(path)
    before = weights(whole)
    again = pf.train(whole.folder, resume=True, progress=False, page=False, **own)
    assert torch.equal(weights(again), before)
    with pytest.raises(ModelFileError, match=r"of another run: optimizer\.options differ"):
        pf.train(whole.folder, resume=True, progress=False, optimizer={"name": Momentum, "options": {"share": 0.5}})
    with pytest.raises(ModelFileError, match=r"of another run: optimizer differ"):
        pf.train(whole.folder, resume=True, progress=False, optimizer={"name": Forgetful})
    own_parts._held.clear()
    with pytest.raises(UsageError, match=r"the augmentation noise .*augmentation=noise"):
        pf.train(whole.folder, resume=True, progress=False)


class Learns(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)


WRONG = [
    ({"loss": lambda raw, targets: raw.mean()}, r"gives \(\) torch.float32 for 20 images; give a tensor with the loss"),
    ({"loss": lambda raw, targets: raw.detach().sum(1)}, "has no gradient"),
    ({"loss": Learns}, "has parameters, which no optimizer would move"),
    ({"loss": {"name": print, "smoothing": 0.1}}, r"loss.smoothing is 0.1 beside the loss python:print"),
    ({"loss": {"name": print, "teacher": {"model": "runs/x"}}}, "leave one of them out"),
    ({"loss": {"name": print, "options": {"gamma": 2}}}, "loss.options, and the loss python:print is no class"),
    ({"loss": 3}, "int is no loss; give a name, a class"),
    ({"loss": {"name": "focal"}}, r'no loss "focal"; name the folder that has losses/focal.py'),
    ({"loss": {"options": {"gamma": 2}}}, "there is no loss of your own; name it"),
    ({"augmentation": lambda image: image[:, 1:]}, r"makes \(3, 31, 32\) torch.uint8 of \(3, 32, 32\)"),
    ({"augmentation": lambda image: image / 255}, r"makes \(3, 32, 32\) torch.float32 of"),
    ({"schedule": lambda step, length: -1}, "says -1 at step 1; it is a share"),
    ({"schedule": {"name": "cosinus"}}, 'no schedule "cosinus"; did you mean "cosine"?'),
    ({"optimizer": {"name": "adam"}}, 'no optimizer "adam"; did you mean "adamw"?'),
    ({"optimizer": {"name": Momentum, "options": {"shares": 0.1}}}, "no option of the optimizer python:Momentum"),
    ({"optimizer": {"name": Momentum, "options": {"share": "much"}}}, "option share of the optimizer"),
    ({"optimizer": {"name": Momentum, "options": {"lr": 0.1}}}, r"optimizer.options has lr; that is optimizer.lr"),
    ({"optimizer": lambda groups, lr: {}}, "makes dict; make it a torch.optim.Optimizer"),
    ({"optimizer": Forgetful}, "Forgetful keeps share, which no checkpoint would hold; keep it as a tensor"),
    ({"optimizer": Counting}, "Counting keeps count, which no checkpoint would hold"),
    ({"training": {"loggers": [Momentum]}}, "Momentum is no class of loggers; give a subclass"),
]


@pytest.mark.parametrize(("settings", "line"), WRONG, ids=[line[:30] for _, line in WRONG])
def test_what_cannot_be_is_one_line(nothing_named, pictures, tmp_path, settings, line):
    with pytest.raises(UsageError, match=line):
        trained(pictures, tmp_path, **settings)


def test_methods_without_a_head_take_no_loss(nothing_named, pictures, tmp_path):
    with pytest.raises(UsageError, match="learns by a method of its own, not by a loss over a head"):
        pf.train("pretraining/small", data=pictures, loss=print, progress=False, name="x", runs=tmp_path)


def test_a_file_with_two_public_names_is_refused(nothing_named, pictures, tmp_path):
    (tmp_path / "mine/losses").mkdir(parents=True)
    (tmp_path / "mine/losses/two.py").write_text("def a(raw, targets): ...\n\n\ndef b(raw, targets): ...\n")
    pf.add_plugin(tmp_path / "mine")
    with pytest.raises(UsageError, match=r"2 public classes and functions, expected one"):
        trained(pictures, tmp_path, loss={"name": "two"})


def test_a_logger_that_is_an_object_gets_the_numbers(nothing_named, pictures, tmp_path):
    told = []

    class Ears(Logger):
        """Hears."""

        def numbers(self, step, numbers):
            told.append(step)

        def close(self, *, failed):
            told.append("failed" if failed else "closed")

    trained(pictures, tmp_path, training={"loggers": [Ears]})
    assert told == [1, 2, 2, 3, 4, 4, "closed"]


@pytest.mark.parametrize("task", ["semantic_segmentation", "detection"])
def test_truths_stay_where_they_are(nothing_named, task):
    """The change of pixels is the last one for every task, and moves nothing."""
    from patchform.data.detection_transforms import training_objects
    from patchform.data.segmentation_transforms import training_scene
    from patchform.descriptions import Preprocessing
    from patchform.records import Instances, Regions
    from patchform.settings import AugmentationSettings

    def black(image):
        return torch.zeros_like(image)

    name = own_parts.hold(own_parts.SLOTS["augmentation"], black)
    settings = (AugmentationSettings(flip=1.0), AugmentationSettings(flip=1.0, name=name))
    image = torch.full((3, 40, 40), 90, dtype=torch.uint8)
    truth = Regions(torch.arange(40, dtype=torch.uint8).repeat(40, 1))
    if task == "detection":
        truth = Instances(torch.tensor([[5.0, 5.0, 20.0, 30.0]]), torch.tensor([0]))
    make = training_objects if task == "detection" else training_scene
    seen = []
    for one in settings:
        torch.manual_seed(3)
        more = (lambda: (image, truth),) if task == "detection" else ()
        seen.append(make(Preprocessing(size=(32, 32), resize="fit"), one)(image, truth, *more))
    assert (seen[0][0] == 90).any()
    assert not seen[1][0].any()
    assert torch.equal(seen[0][1][0], seen[1][1][0])
