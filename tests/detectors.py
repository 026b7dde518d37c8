"""What tests of Faster R-CNN and Mask R-CNN share: torchvision's, ours with the same weights, pictures, objects."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as Theirs
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from patchform.heads.faster_rcnn import FasterRCNN
from patchform.published.faster_rcnn import TORCHVISION
from patchform.records import FeatureInfo, Features, Instances

CLASSES, CHANNELS, STRIDES, WIDTH = 3, (6, 8, 10, 12), (4, 8, 16, 32), 8
FEATURES = FeatureInfo(CHANNELS, STRIDES, 0)
SIZES = (16, 32, 64, 96, 160)
EVERYTHING = 100_000


class Backbone(nn.Module):
    """Four maps, and torchvision's pyramid on them."""

    out_channels = WIDTH

    def __init__(self):
        super().__init__()
        self.fpn = FeaturePyramidNetwork(list(CHANNELS), WIDTH, LastLevelMaxPool())

    def maps(self, images):
        draw = torch.Generator().manual_seed(5)
        weights = [torch.randn(c, 3, 1, 1, generator=draw) for c in CHANNELS]
        return tuple(
            nn.functional.conv2d(nn.functional.avg_pool2d(images, stride), weight)
            for weight, stride in zip(weights, STRIDES)
        )

    def forward(self, images):
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.maps(images))))


@torch.no_grad()
def spread(module, *, seed=0):
    """Draw all parameters so that outputs are about 1 and none saturates."""
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 0.2 if parameter.dim() == 1 else (2 / parameter[0].numel()) ** 0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return module


def theirs(build=Theirs, **options):
    made = build(
        Backbone(),
        CLASSES + 1,
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in SIZES), ((0.5, 1.0, 2.0),) * len(SIZES)),
        image_mean=(0, 0, 0),
        image_std=(1, 1, 1),
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=150,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        box_detections_per_img=60,
        **options,
    )
    made.transform.resize = lambda image, target: (image, target)
    return spread(made)


def ours(other, build=FasterRCNN, **options):
    options = {
        "proposals": {"samples": EVERYTHING, "candidates": (200, 200), "kept": (150, 100)},
        "boxes": {"samples": EVERYTHING, "aligned": False, "most": 60},
        **options,
    }
    made = build(FEATURES, classes=CLASSES, channels_inside=WIDTH, anchor_sizes=SIZES, **options)
    model = nn.ModuleDict({"head": made})
    model.load_state_dict(TORCHVISION.load(other.state_dict(), model.state_dict())[0])
    return made


def pictures(*sizes):
    """Images in 0..1, the same padded to one input, and its padding."""
    draw = torch.Generator().manual_seed(1)
    images = [torch.rand(3, *size, generator=draw) for size in sizes]
    whole = tuple(max(side) for side in zip(*sizes))
    batch, padding = torch.zeros(len(sizes), 3, *whole), torch.ones(len(sizes), *whole, dtype=torch.bool)
    for number, (image, (height, width)) in enumerate(zip(images, sizes)):
        batch[number, :, :height, :width] = image
        padding[number, :height, :width] = False
    return images, batch, padding


def features(batch, padding=None):
    return Features(Backbone().maps(batch), STRIDES, tuple(batch.shape[2:]), pixel_padding=padding)


def objects(size, count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sides = 12 + 60 * torch.rand(count, 2, generator=draw)
    corner = torch.rand(count, 2, generator=draw) * (torch.tensor([size[1], size[0]]) - sides)
    return Instances(torch.cat([corner, corner + sides], 1), torch.arange(count) % CLASSES)


def their_targets(targets):
    return [{"boxes": target.boxes, "labels": target.classes + 1} for target in targets]


def same_predictions(found, wanted, tolerance):
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one.classes + 1, two["labels"])
        torch.testing.assert_close(one.scores, two["scores"], rtol=0, atol=tolerance)
        torch.testing.assert_close(one.boxes, two["boxes"], rtol=0, atol=300 * tolerance)
