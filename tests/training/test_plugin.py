"""A new backbone really is one new file: a plug-in from a folder is listed, built, trained, saved and loaded."""

import sys

import pytest
import tiny
import torch

import patchform as pf
from patchform import lookup
from patchform.commands import models
from patchform.errors import ModelFileError, UsageError
from patchform.training import loop

BACKBONE = '''
"""Pooled pixels: a backbone of one layer."""

from torch import nn

from patchform.backbones.base import Backbone
from patchform.records import Features, Variant


class Pooled(Backbone):
    """Means of squares, projected."""

    def __init__(self, *, in_channels=3, width=16, stride=4):
        super().__init__()
        self.channels, self.strides, self.width = (width,), (stride,), width
        self.pool, self.mix = nn.AvgPool2d(stride, ceil_mode=True), nn.Conv2d(in_channels, width, 1)

    def forward(self, images, *, padding=None):
        map_ = self.mix(self.pool(images)).relu()
        tokens = map_.flatten(2).mT
        return Features((map_,), self.strides, tuple(images.shape[-2:]), tokens, tokens.square().mean(1))

    def layers(self):
        return [self.mix]


VARIANTS = {"nano": Variant(build=Pooled, image_size=32, options={})}
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    (folder / "backbones").mkdir(parents=True)
    (folder / "backbones" / "pooled.py").write_text(BACKBONE)
    monkeypatch.setattr(lookup, "_plugins", [])
    lookup._files.cache_clear()
    yield folder
    lookup._files.cache_clear()
    sys.modules.pop("patchform.backbones.pooled", None)


def test_one_file_is_a_backbone(plugin, tmp_path):
    with pytest.raises(UsageError, match='no backbone "pooled/nano"'):
        pf.build_backbone("pooled/nano")
    pf.add_plugin(plugin)
    assert "pooled/nano" in pf.list_backbones()
    assert [row.name for row in models.models("pooled/*")] == ["pooled/nano"]  # counted: it is in no table
    pictures = tiny.pictures(tmp_path / "pictures", count=40)
    done = loop.train(tiny.recipe(pictures, tmp_path, model={"backbone": "pooled/nano"}), progress=False)
    assert done.step == 4
    (answer,) = pf.load(done.folder).predict([next((pictures / "val" / "h").iterdir())])
    assert answer.target.scores.shape == (4,)
    assert torch.isfinite(answer.target.scores).all()
    lookup._plugins.clear()  # control: without the folder the run says what is missing, and imports nothing
    lookup._files.cache_clear()
    sys.modules.pop("patchform.backbones.pooled")
    with pytest.raises(ModelFileError, match='no backbone "pooled/nano"; there are: axial'):
        pf.load(done.folder)
    assert "patchform.backbones.pooled" not in sys.modules


def test_a_folder_that_is_no_plugin_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a plug-in"):
        pf.add_plugin(tmp_path)


def test_the_package_wins_over_a_plugin_of_the_same_name(plugin, tmp_path):
    (plugin / "backbones" / "vit.py").write_text("raise SystemExit('never run')")
    pf.add_plugin(plugin)
    assert pf.build_backbone("vit/nano").width == 48
