"""Layers take up weights of another size: by the origin's own rules, or not at all."""

import pytest
import torch
from reference import golden
from torch import nn

from patchform.geometry import grids
from patchform.layers import fitting
from patchform.layers.fitting import TransferContext
from patchform.layers.patches import Patches, Tubelets
from patchform.layers.positions import Learned1D, Learned2D, Relative2D, RelativeBias
from patchform.settings import Transfer

PLAIN = TransferContext(Transfer())


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_google_resizes_positions_with_the_corners_aligned():
    _, tensors, _, _ = golden("google_vit_posembed_zoom")
    table = tensors["input"]
    for side in (8, 3):
        position = Learned1D(6, (side, side), prefix=1)
        wanted = tensors[f"output.{side}x{side}"]
        grown, note = position.fit("table", table, TransferContext(Transfer(), corners=True))
        assert note == f"grid 4 x 4 to {side} x {side} (grid assumed square)"
        torch.testing.assert_close(grown, wanted, rtol=0, atol=2e-6)
        other, _ = position.fit("table", table, PLAIN)
        assert (other - wanted).abs().max() > 1e-2  # control: bicubic without corners is another rule


def test_position_tables_grow_as_they_do_in_forward():
    tokens = torch.zeros(1, 1 + 5 * 7, 6)
    small, large = Learned1D(6, (3, 3), prefix=1), Learned1D(6, (5, 7), prefix=1)
    grown, _ = large.fit("table", small.table.detach(), PLAIN)
    large.table.data = grown
    torch.testing.assert_close(large(tokens, (5, 7)), small(tokens, (5, 7)))
    flat, wide = Learned2D(6, (3, 3)), Learned2D(6, (5, 7))
    wide.rows.data, wide.columns.data = (wide.fit(n, getattr(flat, n).detach(), PLAIN)[0] for n in ("rows", "columns"))
    torch.testing.assert_close(wide(tokens, (5, 7)), flat(tokens, (5, 7)))


@pytest.mark.parametrize("kind", [RelativeBias, Relative2D])
def test_relative_tables_grow_as_they_do_in_forward(kind):
    small, large = kind(4, (3, 3)), kind(4, (5, 5))
    for name, parameter in large.named_parameters():
        parameter.data, note = large.fit(name, getattr(small, name).detach(), PLAIN)
        assert note
    q = drawn(1, 1, 4, 25, 4)
    torch.testing.assert_close(large(q, q, (5, 5))[2], small(q, q, (5, 5))[2])


@pytest.mark.parametrize(
    ("cells", "grid", "native", "assumed"),
    [
        (16, None, (4, 4), "grid assumed square"),
        (24, (4, 6), (4, 6), ""),
        (6, (4, 6), (2, 3), ""),
        (15, (5, 9), (3, 5), ""),  # odd grids are halved as strides are: rounded up
        (10, None, (2, 5), "grid assumed 2 x 5"),  # as many cells as the layer's own grid
        (24, None, None, "name the grid"),
        (20, (4, 6), None, "not 4 x 6, the grid that was named"),
        (10, (1, 10), (1, 10), ""),  # what is said goes before what looks alike
    ],
)
def test_the_grid_of_a_table_is_said_or_assumed(cells, grid, native, assumed):
    context = TransferContext(Transfer(grid=grid))
    if native is None:
        with pytest.raises(ValueError, match=assumed):
            context.table(cells, (2, 5), 0)
    else:
        assert context.table(cells, (2, 5), 0) == (native, 0, assumed)
        assert context._replace(native=(9, 1, cells)).table(cells, (2, 5), 0) == ((1, cells), 0, "")


@pytest.mark.parametrize(
    ("rows", "grid", "expected"),
    [
        (17, None, ((4, 4), 1, "grid assumed square")),
        (16, None, ((4, 4), 0, "grid assumed 4 x 4")),
        (25, (5, 5), ((5, 5), 0, "")),
        (25, (4, 6), ((4, 6), 1, "")),
        (25, None, ((5, 5), 0, "grid assumed square")),
        (18, None, "2 in front of 4 x 4 cells would fit: rows of registers or of a distillation token are no cells"),
        (21, None, "5 in front of 4 x 4 cells would fit: rows of registers or of a distillation token are no cells"),
        (201, None, "5 in front of 14 x 14 cells would fit: rows of registers or of a distillation token"),
    ],
)
def test_rows_of_other_tokens_are_no_cells(rows, grid, expected):
    context = TransferContext(Transfer(grid=grid))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected) as caught:
            context.table(rows, (4, 4), 1)
        assert "name the grid" not in str(caught.value)
    else:
        assert context.table(rows, (4, 4), 1) == expected


def test_a_table_of_the_same_length_and_another_grid_is_turned():
    tall, wide = Learned1D(6, (4, 2), prefix=1), Learned1D(6, (2, 4), prefix=1)
    table = tall.table.detach()
    for context in (PLAIN._replace(native=(4, 2)), TransferContext(Transfer(grid=(4, 2)))):
        turned, note = wide.fit("table", table, context)
        assert note == "grid 4 x 2 to 2 x 4"
        wide.table.data = turned
        tokens = torch.zeros(1, 9, 6)
        torch.testing.assert_close(wide(tokens, (2, 4)), tall(tokens, (2, 4)))
    assert not torch.equal(turned, table)
    kept, note = wide.fit("table", table, PLAIN)  # nobody says a grid: it is taken as it lies, and said
    assert kept is table
    assert note == "grid assumed 2 x 4"


def test_relative_tables_of_grids_that_are_not_square():
    tall, wide = RelativeBias(2, (4, 2)), RelativeBias(2, (2, 4))
    turned, note = wide.fit("table", tall.table.detach(), PLAIN._replace(native=(4, 2)))
    assert note == "window 4 x 2 to 2 x 4"
    wide.table.data = turned
    q = drawn(1, 1, 2, 8, 4)
    torch.testing.assert_close(wide(q, q, (2, 4))[2], tall(q, q, (2, 4))[2])
    assert wide.fit("table", RelativeBias(2, (3, 3)).table.detach(), PLAIN)[1].endswith("(grid assumed square)")
    assert RelativeBias(2, (3, 3)).fit("table", drawn(9, 2), PLAIN)[1] == "window 2 x 2 to 3 x 3"
    with pytest.raises(ValueError, match="21 offsets"):
        RelativeBias(2, (3, 3)).fit("table", tall.table.detach(), PLAIN)


# ------------------------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize("side", [8, 6, 32])
def test_resampled_kernels_are_those_of_timm(side):
    resample = pytest.importorskip("timm.layers").resample_patch_embed
    kernel = drawn(5, 3, 16, 16)
    ours = fitting.resample(kernel, side)
    torch.testing.assert_close(ours, resample(kernel, [side, side], antialias=True), rtol=1e-4, atol=1e-4)
    if side > 16:  # by its definition: the product with a patch that grows likewise stays
        patch = drawn(2, 3, 16, 16, seed=1).double()
        grown = nn.functional.interpolate(patch, size=(side, side), mode="bicubic", antialias=True)
        before = torch.einsum("dcyx,bcyx->bd", kernel.double(), patch)
        after = torch.einsum("dcyx,bcyx->bd", ours.double(), grown)
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
        plain = nn.functional.interpolate(kernel.double(), size=(side, side), mode="bicubic")
        assert (torch.einsum("dcyx,bcyx->bd", plain, grown) - before).abs().max() > 1  # control


def test_other_patches_must_be_allowed():
    patches, kernel = Patches(3, 5, 8), drawn(5, 3, 16, 16)
    with pytest.raises(ValueError, match="patches of 16 pixels to 8"):
        patches.fit("proj.weight", kernel, PLAIN)
    weight, note = patches.fit("proj.weight", kernel, TransferContext(Transfer(patch="resample")))
    assert weight.shape == patches.proj.weight.shape
    assert note == "patches of 16 pixels to 8"
    for wrong in (drawn(5, 768), drawn(4, 3, 16, 16)):
        with pytest.raises(ValueError, match="no kernel"):
            patches.fit("proj.weight", wrong, TransferContext(Transfer(patch="resample")))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_averaged_channels_keep_what_a_grey_picture_gave(channels):
    kernel, grey = drawn(5, 3, 8, 8).double(), drawn(2, 1, 8, 8, seed=1).double()
    patches = Patches(channels, 5, 8).double()
    weight, note = patches.fit("proj.weight", kernel, TransferContext(Transfer(channels="average")))
    assert note == f"3 channels to {channels}, averaged"
    after = grey.expand(-1, channels, -1, -1).flatten(1) @ weight.t()
    before = grey.expand(-1, 3, -1, -1).flatten(1) @ kernel.flatten(1).t()
    torch.testing.assert_close(after, before)


def test_repeated_channels_come_in_turn():
    kernel = drawn(5, 3, 8, 8)
    weight, note = Patches(7, 5, 8).fit("proj.weight", kernel, TransferContext(Transfer(channels="repeat")))
    assert note == "3 channels to 7, repeated"
    turns = kernel[:, [0, 1, 2, 0, 1, 2, 0]] * 3 / 7
    torch.testing.assert_close(weight, turns.flatten(1))
    six = turns[:, :6] * 7 / 6
    assert torch.allclose(six.sum(1), kernel.sum(1), atol=1e-5)  # whole turns: grey gives what it gave


def test_channels_are_sliced_fresh_or_refused():
    kernel = drawn(5, 3, 8, 8)
    two, four = Patches(2, 5, 8), Patches(4, 5, 8)
    with pytest.raises(ValueError, match="say how"):
        two.fit("proj.weight", kernel, PLAIN)
    assert torch.equal(
        two.fit("proj.weight", kernel, TransferContext(Transfer(channels="slice")))[0], kernel[:, :2].flatten(1)
    )
    with pytest.raises(ValueError, match="not so many"):
        four.fit("proj.weight", kernel, TransferContext(Transfer(channels="slice")))
    fresh, note = four.fit("proj.weight", kernel, TransferContext(Transfer(channels="new")))
    assert torch.equal(fresh, four.proj.weight)
    assert note == "3 channels to 4, fresh"


@pytest.mark.parametrize("frames", ["central", "average"])
def test_a_still_clip_gives_what_the_picture_gave(frames):
    kernel, picture = drawn(5, 3, 8, 8), drawn(2, 3, 16, 24, seed=1)
    image, clip = Patches(3, 5, 8), Tubelets(3, 5, 8, 4)
    image.proj.weight.data = kernel.flatten(1)
    clip.proj.bias.data = image.proj.bias.data
    with pytest.raises(ValueError, match="say how"):
        clip.fit("proj.weight", kernel, PLAIN)
    clip.proj.weight.data, note = clip.fit("proj.weight", kernel, TransferContext(Transfer(frames=frames)))
    assert note == f"1 frame to 4, {frames}"
    still = picture[:, None].expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(clip(still)[:, 0], image(picture), rtol=1e-4, atol=1e-4)
    moving = still * torch.tensor([0.0, 0.0, 1.0, 0.0]).view(1, 4, 1, 1, 1)
    same = torch.allclose(clip(moving)[:, 0], image(picture), atol=1e-4)
    assert same == (frames == "central")  # only the frame in the middle is seen


def test_tubelets_of_other_patches_and_channels():
    kernel, own = drawn(5, 3, 2, 8, 8), Tubelets(1, 5, 16, 2)
    with pytest.raises(ValueError, match="3 channels to 1: say how"):
        own.fit("proj.weight", kernel, PLAIN)
    how = TransferContext(Transfer(channels="average", patch="resample"))
    found, note = own.fit("proj.weight", kernel, how)
    assert note == "3 channels to 1, averaged, patches of 8 pixels to 16"
    frames = [Patches(1, 5, 16).fit("proj.weight", kernel[:, :, frame], how)[0] for frame in range(2)]
    torch.testing.assert_close(found.view(5, 2, 256), torch.stack(frames, 1))
    with pytest.raises(ValueError, match="tubelets of 2 frames do not become such of 3"):
        Tubelets(3, 5, 8, 3).fit("proj.weight", kernel, PLAIN)
    with pytest.raises(ValueError, match="no kernel of patches or tubelets"):
        Tubelets(3, 6, 8, 2).fit("proj.weight", kernel, PLAIN)


def test_words_of_a_resize():
    assert fitting.resized((2, 3), (4, 5), "window") == "window 2 x 3 to 4 x 5"
    assert grids.resize(drawn(2, 2, 1), (3, 3), mode="corners")[0, 0] == drawn(2, 2, 1)[0, 0]
