import pytest
import torch
from torchvision.transforms import v2

from patchform.data.segmentation_transforms import Mirror, ScaledCrop, evaluation_scene, training_scene
from patchform.data.transforms import Jitter, resize
from patchform.errors import UsageError
from patchform.records import IGNORED, Preprocessing, Regions
from patchform.settings import AugmentationSettings

COLORS = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [200, 200, 0], [0, 200, 200]], dtype=torch.uint8)


def prepared(size, resize="native", **more):
    return Preprocessing(size=size, resize=resize, interpolation="bilinear", **more)


def scene(height, width, seed=0, cell=16, classes=5):
    """Squares of a colour for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(classes, (-(-height // cell), -(-width // cell)), generator=generator)
    ids = cells.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
    return COLORS[ids].permute(2, 0, 1).contiguous(), Regions(ids.to(torch.uint8))


def agree(image, classes):
    """Share of the pixels that are not ignored whose colour is that of their class."""
    counted = classes != IGNORED
    close = (image.int() - COLORS[classes.long().clamp(max=4)].permute(2, 0, 1).int()).abs().amax(0) <= 2
    return (close & counted).sum() / counted.sum()


@pytest.mark.parametrize("kind", ["native", "keep", "squash"])
@pytest.mark.parametrize("size", [(96, 160), (40, 200), (200, 40), (64, 64), (1, 300)])
def test_picture_and_mask_change_together(size, kind):
    transform = training_scene(prepared((64, 80), kind), AugmentationSettings(vertical_flip=0.5))
    torch.manual_seed(0)
    shares, mirrored = [], []
    for seed in range(20):
        given = scene(*size, seed=seed)
        before = [tensor.clone() for tensor in (given[0], given[1].classes)]
        image, regions = transform(*given)
        assert image.shape == (3, 64, 80)
        assert regions.classes.shape == (64, 80)
        assert image.dtype == regions.classes.dtype == torch.uint8
        assert given[0].equal(before[0])
        assert given[1].classes.equal(before[1])
        shares.append(agree(image, regions.classes))
        mirrored.append(agree(image.flip(-1), regions.classes))
    assert torch.stack(shares).mean() > 0.6  # all but pixels at edges, where colours mix
    if size in ((96, 160), (64, 64)):
        assert torch.stack(shares).mean() > torch.stack(mirrored).mean() + 0.2  # control


def test_at_scale_one_the_crop_is_a_part_of_the_picture():
    crop = ScaledCrop(prepared((24, 32)), (1.0, 1.0))
    rows, columns = torch.meshgrid(torch.arange(50), torch.arange(70), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    places = set()
    torch.manual_seed(0)
    for _ in range(300):
        found, regions = crop(image, Regions(rows.to(torch.uint8)))
        top, left = int(found[0, 0, 0]), int(found[1, 0, 0])
        assert found.equal(image[:, top : top + 24, left : left + 32])
        assert regions.classes.equal(found[0])
        places.add((top, left))
    assert {top for top, _ in places} == set(range(27))  # every place that fits
    assert {left for _, left in places} == set(range(39))


def test_cropping_first_equals_resizing_first_but_for_its_edge():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 128, 160), generator=generator).to(torch.uint8)
    rows, columns = torch.meshgrid(torch.arange(128), torch.arange(160), indexing="ij")
    crop = ScaledCrop(prepared((32, 40)), (0.5, 0.5))
    small = resize(image, (64, 80), "bilinear")
    for seed in range(40):
        torch.manual_seed(seed)
        found, top = crop(image, Regions(rows.to(torch.uint8)))
        torch.manual_seed(seed)
        _, left = crop(image, Regions(columns.to(torch.uint8)))
        # a pixel's class is that of the row and the column under its centre, the second of each two
        top, left = int(top.classes[0, 0]) - 1, int(left.classes[0, 0]) - 1
        if top % 2 or left % 2:
            continue
        wanted = small[:, top // 2 : top // 2 + 32, left // 2 : left // 2 + 40]
        difference = (found.int() - wanted.int()).abs()
        assert difference[:, 1:-1, 1:-1].max() <= 1
        if top and left:
            break
    else:
        raise AssertionError("no even place was drawn")


def test_what_is_lacking_is_black_and_ignored():
    image, regions = scene(20, 90)
    torch.manual_seed(0)
    found, cut = ScaledCrop(prepared((64, 40)), (0.5, 0.5))(image + 1, regions)
    assert (cut.classes[:10] != IGNORED).all()
    assert (cut.classes[10:] == IGNORED).all()
    assert (found[:, 10:] == 0).all()
    assert found[:, :10].amin() > 0


def test_scale_one_is_the_scale_of_evaluation_and_the_range_is_reached():
    image, regions = scene(120, 300)
    p = prepared((60, 500), "keep")
    assert evaluation_scene(p)(image, regions)[0].shape == (3, 60, 150)
    torch.manual_seed(0)
    crop = ScaledCrop(p, (0.5, 2.0))
    heights = [int((crop(image, regions)[1].classes[:, 0] != IGNORED).sum()) for _ in range(200)]
    assert min(heights) < 35
    assert sum(height == 60 for height in heights) > 100  # of 0.5..2, two thirds are above 1
    torch.manual_seed(0)
    widths = [int((crop(image, regions)[1].classes[0] != IGNORED).sum()) for _ in range(200)]
    assert (min(widths), max(widths)) == pytest.approx((75, 300), abs=5)
    assert sum(widths) / 200 == pytest.approx(150 * 1.25, rel=0.05)


def test_crops_of_one_class_are_drawn_again():
    image = torch.zeros(3, 40, 200, dtype=torch.uint8)
    ids = torch.zeros(40, 200, dtype=torch.uint8)
    ids[:, 180:] = 1
    ids[:20, :60] = IGNORED
    crop = ScaledCrop(prepared((40, 40)), (1.0, 1.0))

    def share_of_good():
        torch.manual_seed(0)
        shares = []
        for _ in range(200):
            counts = torch.bincount(crop(image, Regions(ids))[1].classes.flatten(), minlength=256)[:255]
            shares.append(bool(counts.max() <= 0.75 * counts.sum()))
        return sum(shares) / 200

    # 11 of the 161 places are good: left sides from 150 to 160
    assert share_of_good() == pytest.approx(1 - (150 / 161) ** 10, abs=0.1)
    crop.attempts = 1  # the control
    assert share_of_good() == pytest.approx(11 / 161, abs=0.05)
    ids[:] = IGNORED  # nothing to judge by
    assert (crop(image, Regions(ids))[1].classes == IGNORED).all()


def test_mirrors_flip_both():
    image, regions = scene(20, 30)
    for axis in (-1, -2):
        found, flipped = Mirror(axis, 1.0)(image, regions)
        assert found.equal(image.flip(axis))
        assert flipped.classes.equal(regions.classes.flip(axis))
    assert Mirror(-1, 0.0)(image, regions)[0] is image
    torch.manual_seed(0)
    count = sum(Mirror(-1, 0.3)(image, regions)[0] is not image for _ in range(500))
    assert count / 500 == pytest.approx(0.3, abs=0.07)


def test_evaluation_leaves_the_mask_alone():
    image, regions = scene(50, 100)
    for kind, shape in (("keep", (25, 50)), ("native", (50, 100)), ("squash", (25, 25))):
        found, same = evaluation_scene(prepared((25, 25), kind))(image, regions)
        assert found.shape == (3, *shape)
        assert same is regions


@pytest.mark.parametrize("bits", [8, 16])
def test_deep_and_many_banded_pictures_keep_their_type(bits):
    image, regions = scene(40, 50)
    image = torch.cat([image, image[:2]])
    image = image if bits == 8 else image.float() / 255
    p = prepared((32, 32), channels=5, bits=bits)
    found, _ = training_scene(p, AugmentationSettings())(image, regions)
    assert found.dtype == image.dtype
    assert found.shape == (5, 32, 32)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "rand_augment"},
        {"erasing": 0.1},
        {"crop_padding": 4},
        {"mixup": 0.1},
        {"cutmix": 0.1},
        {"scale": (2.0, 1.0)},
        {"scale": (0.0, 1.0)},
        {"sizes": (8,)},
        {"mosaic": 0.5},
        {"copy_paste": 0.5},
    ],
)
def test_settings_that_are_not_for_masks_are_refused(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        training_scene(prepared((8, 8)), AugmentationSettings(**settings))


def test_crops_at_evaluation_and_jitter_of_bands_are_refused():
    for make in (evaluation_scene, lambda p: training_scene(p, AugmentationSettings())):
        with pytest.raises(UsageError, match=r"preprocessing\.resize"):
            make(Preprocessing(size=(8, 8)))
    with pytest.raises(UsageError, match="color_jitter"):
        training_scene(prepared((8, 8), channels=4), AugmentationSettings(color_jitter=0.5))


# ------------------------------------------------------------------------------------------------------------- colours


def test_colour_matrices():
    jitter = Jitter(0.5)
    eye = torch.eye(3)
    assert torch.allclose(jitter.matrix(0, 0, 0), eye, atol=1e-6)
    assert torch.allclose(jitter.matrix(0.3, 0, 0), 1.3 * eye, atol=1e-6)
    luma = torch.tensor(jitter.yiq[0])
    for saturation, angle in ((0.4, 0.0), (-0.5, 0.3), (0.0, 1.0)):
        matrix = jitter.matrix(0, saturation, angle)
        assert torch.allclose(matrix.sum(1), torch.ones(3), atol=1e-5)  # greys stay
        assert torch.allclose(luma @ matrix, luma, atol=1e-5)  # so does luma
    grey = jitter.matrix(0, -1, 0)
    assert torch.allclose(grey, luma.expand(3, 3), atol=1e-5)
    assert torch.allclose(jitter.matrix(0, 0, 0.3) @ jitter.matrix(0, 0, -0.3), eye, atol=1e-5)


def test_saturation_is_that_of_torchvision_where_nothing_is_cut_off():
    image = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    ours = (Jitter(0.5).matrix(0, 0.5, 0) @ image.flatten(1)).view(image.shape)
    theirs = v2.functional.adjust_saturation(image, 1.5)
    assert torch.allclose(ours, theirs, atol=2e-3)  # their weights of luma are rounded to four digits
    assert not torch.allclose(ours, image, atol=2e-2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("deep", [False, True])
def test_each_change_is_made_half_of_the_time_and_within_its_range(channels, deep):
    whole = 1 if deep else 255
    image = torch.full((channels, 2, 2), 0.2) if deep else torch.full((channels, 2, 2), 51, dtype=torch.uint8)
    torch.manual_seed(0)
    found = torch.stack([Jitter(0.5)(image).float() for _ in range(2000)]) / whole
    assert found.std((1, 2, 3)).max() <= 1e-6  # grey stays grey
    value = found[:, 0, 0, 0]
    rounding = 0 if deep else 0.5 / 255
    assert value.min() >= (0.2 - 32 / 255) * 0.5 - rounding
    assert value.max() <= (0.2 + 32 / 255) * 1.5 + rounding
    assert value.min() < 0.06
    assert value.max() > 0.46
    near = (value - 0.2).abs() <= 1e-6 + rounding  # neither brightness nor contrast, or hardly
    assert near.float().mean() == pytest.approx(0.26, abs=0.04)


def test_no_change_gives_the_same_tensor_and_types_stay():
    image, _ = scene(8, 8)
    torch.manual_seed(0)
    found = [Jitter(1.0)(image) for _ in range(300)]
    assert sum(each is image for each in found) / 300 == pytest.approx(1 / 16, abs=0.04)
    assert all(each.dtype == torch.uint8 and each.shape == image.shape for each in found)
