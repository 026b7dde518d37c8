import io
import json

import numpy as np
import pytest
import torch
from losses import total_loss
from PIL import Image

from patchform import drawing, lookup
from patchform.data.collate import to_device
from patchform.data.dataset import open_data
from patchform.data.listing import MaskCodes
from patchform.data.loader import TrainingBatches, evaluation_loader, training_loader
from patchform.data.mask_files import decode_mask
from patchform.evaluation import evaluate
from patchform.heads.base import Head
from patchform.model import build_model
from patchform.records import Preprocessing, Regions
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.base import Task
from patchform.tasks.semantic_segmentation import LEGEND, SemanticSegmentation

NAMES = ("sky", "road", "tree", "car")
TASK = SemanticSegmentation()


def truth(size=(20, 30), classes=4, seed=0):
    ids = torch.randint(classes, size, generator=torch.Generator().manual_seed(seed))
    ids[:2] = 255
    return Regions(ids)


def certain(target, classes=4):
    ids = target.classes.where(target.classes != 255, 1)
    return Regions(ids, torch.nn.functional.one_hot(ids, classes).permute(2, 0, 1).float())


def test_the_file_name_is_the_entry_and_the_head_serves_it():
    assert lookup.the_class("tasks", "semantic_segmentation", Task) is SemanticSegmentation
    assert TASK.name in lookup.the_class("heads", TASK.head, Head).tasks


def test_a_target_against_itself_scores_one():
    targets = [truth(seed=seed) for seed in range(3)]
    for metric in (TASK.metric(NAMES), TASK.full_metric(NAMES)):
        metric.update([certain(target) for target in targets], targets)
        scores = metric.compute()
        assert scores.better == TASK.better
        assert scores.best == 1.0
        assert scores.samples == 3
        json.dumps(scores.as_json(), allow_nan=False)
    assert scores.numbers["boundary_iou"] == scores.numbers["frequency_iou"] == 1.0
    assert scores.numbers["ece"] == 0.0
    assert set(scores.tables) == {"classes", "confusion", "boundary", "reliability"}


def test_a_record_has_the_shares_of_what_is_labelled():
    ids = torch.full((10, 10), 255)
    ids[:5] = 2
    ids[5:6] = 0
    assert TASK.record(Regions(ids.to(torch.uint8)), NAMES) == {"shares": {"tree": 0.833333, "sky": 0.166667}}
    assert TASK.record(Regions(ids * 0 + 255), NAMES) == {"shares": {}}
    json.dumps(TASK.record(certain(truth()), NAMES), allow_nan=False)


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (50, 300)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_drawings_of_any_size_and_of_many_classes(size, channels):
    image = torch.zeros(channels, *size, dtype=torch.uint8)
    ids = torch.arange(size[0] * size[1]).view(size) % 255
    names = [f"class {index}" for index in range(255)]
    page = TASK.draw(image, Regions(ids), names)
    assert page.mode == "RGB"
    nothing = TASK.draw(image, Regions(ids * 0 + 255), names)
    lines = min(size[0] * size[1], LEGEND + 1)
    assert (page.height - nothing.height) % (lines - 1 or 1) == 0
    assert (page.height > nothing.height) == (lines > 1)


def test_an_index_picture_reads_back_as_the_same_mask():
    target = truth()
    files = TASK.files(target)
    assert set(files) == {".classes.png"}
    coding = MaskCodes(ids=((0, 0), (1, 1), (2, 2), (3, 3), (255, 255)))
    assert decode_mask(files[".classes.png"], coding, (20, 30)).equal(target.classes.to(torch.uint8))
    colors = np.array(Image.open(io.BytesIO(files[".classes.png"])).convert("RGB"))
    assert tuple(colors[5, 5]) == drawing.palette()[int(target.classes[5, 5])]


def test_probabilities_are_written_on_request():
    guess = certain(truth())._replace(scores=torch.rand(4, 20, 30, generator=torch.Generator().manual_seed(0)))
    assert set(TASK.files(guess)) == {".classes.png"}
    assert set(TASK.files(truth(), scores=True)) == {".classes.png"}  # a truth has none
    scores = np.load(io.BytesIO(TASK.files(guess, scores=True)[".scores.npy"]))
    assert scores.dtype == np.float16
    assert np.abs(scores - guess.scores.numpy()).max() < 2**-11


def test_a_model_learns_squares_of_colour(tmp_path):
    """Folder to score, through every part: listing, scenes, loader, head, metric at the pictures' own sizes."""
    colors = np.array([[250, 30, 30], [30, 250, 30], [30, 30, 250]], np.uint8)
    dice = np.random.default_rng(0)
    for index in range(12):
        size = [(40, 56), (48, 40), (64, 64)][index % 3]
        ids = dice.integers(0, 3, (8, 8), dtype=np.uint8).repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
        for folder, array in (("images", colors[ids]), ("masks", ids)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / folder / f"{index}.png")
    settings = DataSettings(path=str(tmp_path), classes=("red", "green", "blue"), validation_share=0.25)
    preprocessing = Preprocessing(size=(32, 32), resize="native", interpolation="bilinear")
    splits = open_data(settings, seed=0, preprocessing=preprocessing, task=TASK.name)
    torch.manual_seed(0)
    model = build_model(
        TASK.name,
        backbone="vit/nano",
        head="setr",
        classes=splits.train.classes,
        preprocessing=preprocessing,
        backbone_options={"patch": 4},
    )
    held_out = evaluation_loader(TASK.evaluation_samples(splits.validation, preprocessing), 3)
    before = evaluate(model, held_out, TASK, metric=TASK.full_metric(model.classes))
    learning = TASK.training_samples(splits.train, preprocessing, AugmentationSettings(color_jitter=0.2), 0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for batch in training_loader(learning, TrainingBatches(len(learning), 9, 0, 0, 25)):
        optimizer.zero_grad()
        total_loss(model(to_device(batch, "cpu"))).backward()
        optimizer.step()
    after = evaluate(model, held_out, TASK, metric=TASK.full_metric(model.classes))
    assert before.samples == after.samples == 3
    assert before.best < 0.5
    assert after.best > 0.8
    assert after.numbers["boundary_iou"] > before.numbers["boundary_iou"]
