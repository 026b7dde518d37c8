"""The batches of a run: what is drawn for them."""

import pytest
import tiny
import torch

from patchform.distributed import SINGLE
from patchform.training.batches import Batches, open_training
from patchform.training.progress import Reporter
from patchform.training.run import Stop, Surroundings


@pytest.mark.parametrize(("balanced", "times"), [(False, range(8, 9)), (True, range(48, 77))])
def test_classes_come_equally_often_where_the_recipe_says_so(balanced, times, tmp_path):
    folder = tiny.pictures(tmp_path, count=40)
    for picture in sorted((folder / "train/h").iterdir())[1:]:  # one is left, and ten of each other class
        picture.unlink()
    recipe = tiny.recipe(folder, "", data={"balanced": balanced}, training={"batch_size": 31, "epochs": 8})
    around = Surroundings(tmp_path, torch.device("cpu"), SINGLE, Reporter(shown=False), Stop())
    data = open_training(recipe, around, resume=False)
    batches = Batches(recipe, data, data.course(recipe), around, 0)
    drawn = torch.cat([target.classes for step in range(8) for target in batches.next(step).targets])
    rare = data.listing.classes.index("h")
    assert len(drawn) == 8 * 31
    assert int((drawn == rare).sum()) in times  # once an epoch, or a quarter of all, 62
