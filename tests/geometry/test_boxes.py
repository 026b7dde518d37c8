import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from patchform.geometry import boxes


def some(count, seed):
    draw = torch.Generator().manual_seed(seed)
    corner, sides = 100 * torch.rand(count, 2, generator=draw), 1 + 50 * torch.rand(count, 2, generator=draw)
    return torch.cat([corner, corner + sides], 1)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_shifts_are_torchvisions(scales):
    anchors, wanted, coder = some(200, 0), some(200, 1), BoxCoder(scales)
    found = boxes.encode(wanted, anchors, scales)
    torch.testing.assert_close(found, coder.encode_single(wanted, anchors))
    torch.testing.assert_close(boxes.decode(found, anchors, scales), wanted)
    assert not torch.allclose(found, boxes.encode(wanted, anchors, scales[::-1]) + 1e-3)  # control
    wild = 20 * torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(2))
    there = coder.decode_single(wild.flatten(1), anchors).view(200, 3, 4)
    torch.testing.assert_close(boxes.decode(wild, anchors[:, None], scales), there)
    assert boxes.decode(1e9 * wild, anchors[:, None], scales).isfinite().all()


def test_corners_and_centres_go_both_ways():
    corners = some(20, 3).view(4, 5, 4)
    centres = boxes.to_centres(corners)
    assert centres[0, 0].tolist() == pytest.approx(
        [
            (corners[0, 0, 0] + corners[0, 0, 2]).item() / 2,
            (corners[0, 0, 1] + corners[0, 0, 3]).item() / 2,
            (corners[0, 0, 2] - corners[0, 0, 0]).item(),
            (corners[0, 0, 3] - corners[0, 0, 1]).item(),
        ]
    )
    torch.testing.assert_close(boxes.to_corners(centres), corners)
