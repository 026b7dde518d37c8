from dataclasses import dataclass

import pytest
import torch
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.twins import PCPVT, SVT, VARIANTS
from patchform.geometry import grids
from patchform.layers.drop import linear_rates
from patchform.layers.patterns import Groups, Windows
from patchform.published.twins import LAYOUTS, SCORES
from patchform.weights.rules import recognise

SMALL = {
    PCPVT: {"widths": (8, 16, 20, 32), "depths": (2, 2, 3, 1), "heads": (1, 2, 5, 8)},
    SVT: {"widths": (8, 16, 24, 32), "depths": (2, 2, 3, 2), "heads": (2, 2, 3, 4)},
}
"""The sizes of the golden vectors."""
GOLDEN = {"twins_pcpvt": PCPVT, "twins_svt": SVT}
ROWS = {
    **{f"pcpvt_{size[0]}": f"pcpvt_{size}_v0" for size in ("small", "base", "large")},
    **{f"svt_{size[0]}": f"alt_gvt_{size}" for size in ("small", "base", "large")},
}


def variant(name, **options):
    row = VARIANTS[name]
    return row.build(**{**row.options, **options})


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


# ------------------------------------------------------------------------------------------------------ golden vectors


def watch(backbone):
    """What the hooks will have seen, by the names of the golden vectors."""
    seen = {}

    def keep(module, key):
        module.register_forward_hook(lambda _m, _i, found: seen.update({key: found.flatten(1, 2)}))

    for number, stage in enumerate(backbone.stages):
        keep(backbone.patches_norms[number], f"patch_embed{number}")
        keep(stage[-1], f"stage{number}")  # of a stage with one block, the encoder comes behind it
        keep(backbone.positions[number], f"peg{number}")
    return seen


def excess(seen, tensors, rounding):
    """Largest error over ten times that of rounding."""
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * error)).item() for key, error in rounding.items()}


@torch.no_grad()
def errors(name, change=lambda backbone: None):
    config, tensors, parameters, rounding = golden(name)
    backbone = GOLDEN[name](**SMALL[GOLDEN[name]])
    assert tuple(config["embed_dims"]) == backbone.channels
    ours = Classifier(backbone).eval()
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "meituan"
    assert not load(ours, LAYOUTS["meituan"], parameters).dropped
    change(backbone)
    seen = watch(backbone)
    seen["output"] = ours(tensors["input"])
    return excess(seen, tensors, rounding)


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_authors_code(name):
    assert max(errors(name).values()) <= 1


@dataclass(frozen=True)
class Unmasked(Windows):
    """Windows that are filled up with zeros, which every query attends to."""

    def gather(self, x, padding=None):
        """As one cuts a map that was padded with zeros."""
        (height, width), (tall, wide) = x.shape[1:3], self.size
        grown = pad(x, (0, 0, 0, -width % wide, 0, -height % tall))
        return Groups(Windows.gather(self, grown).tokens, self.size)


@torch.no_grad()
def dense_errors(forgets):
    """The authors' dense code, whose norm after each stage feeds the next one and which has two faults of its own.

    It drops the last row or column of an odd map, where we fill up with zeros; and it masks what is missing of windows
    only if both axes have some, where we always do. `forgets` are the stages whose maps have them along one axis.
    """
    _, tensors, parameters, rounding = golden("twins_svt_dense")
    backbone = SVT(**SMALL[SVT], window=4)
    norms = [torch.nn.LayerNorm(width, eps=1e-6) for width in backbone.channels]
    for number, norm in enumerate(norms):
        norm.load_state_dict({name: parameters.pop(f"norm_list.{number}.{name}") for name in ("weight", "bias")})
    load(Classifier(backbone), LAYOUTS["meituan"], parameters)
    for number, patches in enumerate(backbone.patches):
        if number:
            patches.register_forward_pre_hook(
                lambda _m, given, norm=norms[number - 1]: norm(
                    given[0][:, : given[0].shape[1] // 2 * 2, : given[0].shape[2] // 2 * 2]
                )
            )
    for number in forgets:
        for block in backbone.stages[number][::2]:
            block.pattern = Unmasked((4, 4))
    seen = watch(backbone.eval())
    for number, map_ in enumerate(backbone(tensors["input"]).maps):
        seen[f"output.{number}"] = norms[number](map_.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return excess(seen, tensors, rounding)


def test_equals_the_authors_dense_code():
    assert max(dense_errors(forgets=[2]).values()) <= 1


def test_control_dense_masks():
    with_mask = dense_errors(forgets=[])
    assert with_mask["stage1"] <= 1
    assert with_mask["stage2"] > 10
    assert dense_errors(forgets=[0, 2])["stage0"] > 10


def swap_norms(backbone):
    block = backbone.stages[1][1]
    block.norm1, block.norm2 = block.norm2, block.norm1


def transpose_squares(backbone):
    squares = backbone.stages[0][1].attention.reduction.squares
    p = squares.side
    kernel = squares.proj.weight.unflatten(1, (p, p, -1)).transpose(1, 2).flatten(1)
    squares.proj.weight = torch.nn.Parameter(kernel)


def forget_the_encoder(backbone):
    backbone.positions[2].forward = lambda x, padding: x


def encode_after_the_last_block(backbone):
    first, last = backbone.stages[2][0], backbone.stages[2][2]
    place, encoder = backbone.positions[2].forward, backbone.positions[2]
    encoder.forward = lambda x, padding: x
    last.register_forward_hook(lambda _m, _i, found: place(found, None))
    assert first is not last


def forget_a_reduction_norm(backbone):
    backbone.stages[1][1].attention.reduction.norm = torch.nn.Identity()


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(
    "change",
    [swap_norms, transpose_squares, forget_the_encoder, encode_after_the_last_block, forget_a_reduction_norm],
)
def test_control_a_fault_is_seen(name, change):
    assert errors(name, change)["output"] > 10  # a hundred times the rounding


def test_control_displaced_windows():
    def displace(backbone):
        backbone.stages[1][0].pattern = Windows((7, 7), (3, 3))

    assert errors("twins_svt", displace)["output"] > 10


# --------------------------------------------------------------------------------------------------------------- timm


def timm_small(build, window=7):
    twins = pytest.importorskip("timm.models.twins")
    size = SMALL[build]
    theirs = twins.Twins(
        img_size=64,
        num_classes=10,
        embed_dims=size["widths"],
        depths=size["depths"],
        num_heads=size["heads"],
        mlp_ratios=(8, 8, 4, 4) if build is PCPVT else (4, 4, 4, 4),
        wss=None if build is PCPVT else (window,) * 4,
    )
    return randomise(theirs.eval())


@pytest.mark.parametrize(("build", "size"), [(PCPVT, (64, 96)), (PCPVT, (96, 160)), (SVT, (128, 64)), (SVT, (64, 64))])
def test_equals_timm(build, size):
    window = {} if build is PCPVT else {"window": 2}
    theirs, ours = timm_small(build, **window), Classifier(build(**SMALL[build], **window)).eval()
    assert recognise(LAYOUTS, theirs.state_dict(), ours.state_dict()) == "meituan"
    assert not load(ours, LAYOUTS["meituan"], theirs.state_dict()).dropped
    images = pictures(2, 3, *size)
    assert difference(theirs, ours, images) <= 10 * rounding_of(theirs, images)
    block = ours.backbone.stages[1][0]
    block.norm1, block.norm2 = block.norm2, block.norm1  # control
    assert difference(theirs, ours, images) > 100 * rounding_of(theirs, images)


def test_timm_lets_windows_look_at_what_is_not_there():
    """Where windows do not tile a map, timm fills up with zeros and does not mask them; the authors and we do."""
    theirs, ours = timm_small(SVT, window=3), Classifier(SVT(**SMALL[SVT], window=3)).eval()
    load(ours, LAYOUTS["meituan"], theirs.state_dict())
    images = pictures(2, 3, 64, 64)
    assert difference(theirs, ours, images) > 100 * rounding_of(theirs, images)
    for stage in ours.backbone.stages:
        for block in stage[::2]:
            block.pattern = Unmasked((3, 3))
    assert difference(theirs, ours, images) <= 10 * rounding_of(theirs, images)


# --------------------------------------------------------------------------------------------------- layouts and sizes


@pytest.mark.parametrize("name", ["nano", "nano_pcpvt"])
def test_written_back_and_recognised(name):
    ours = randomise(Classifier(variant(name)))
    written = LAYOUTS["meituan"].dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == "meituan"
    filled, report = LAYOUTS["meituan"].load(written, ours.state_dict())
    assert not report.dropped
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


@pytest.mark.parametrize("name", ROWS)
def test_layout_knows_all_tensors_of_timm(name):
    timm = pytest.importorskip("timm")
    kind, size = ROWS[name].removesuffix("_v0").removeprefix("alt_").split("_")
    with torch.device("meta"):
        theirs = timm.create_model(f"twins_{'svt' if kind == 'gvt' else kind}_{size}")
        ours = Classifier(variant(name), classes=1000)
    loaded, _ = LAYOUTS["meituan"].load(theirs.state_dict(), ours.state_dict())
    written = LAYOUTS["meituan"].dump(loaded)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in written.items()} == shapes


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiplications_are_counted_as_published(name):
    row = full_size("Twins")[ROWS[name]]
    with torch.device("meta"):
        ours = Classifier(variant(name), classes=row["num_classes"]).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ours(torch.empty(1, 3, 224, 224))
    assert sum(p.numel() for p in ours.parameters()) == row["params"]
    assert counter.get_total_flops() == row["flops"]["224x224"]["flops"]


def test_every_published_model_has_a_row():
    assert set(ROWS) == {name for name in VARIANTS if not name.startswith("nano")}
    assert {row.variant for row in SCORES} == set(ROWS)
    assert set(ROWS.values()) == set(full_size("Twins"))


# ----------------------------------------------------------------------------------------------------------- behaviour


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (37, 50), (7, 90), (3, 3)])
@pytest.mark.parametrize("build", [PCPVT, SVT])
def test_any_size(build, size):
    backbone = randomise(build(**SMALL[build]), scale=0.1).eval()
    features = backbone(pictures(2, 3, *size))
    assert backbone.strides == features.strides == (4, 8, 16, 32)
    for map_, channels, stride in zip(features.maps, backbone.channels, features.strides, strict=True):
        assert map_.shape == (2, channels, *grids.cells(size, stride))
    assert torch.isfinite(features.summary).all()
    expected = backbone.norm(features.maps[-1].permute(0, 2, 3, 1)).flatten(1, 2)
    assert torch.equal(features.tokens, expected)
    torch.testing.assert_close(features.summary, expected.mean(1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "nano_pcpvt"])
def test_what_lies_on_padding_changes_nothing(name):
    backbone = randomise(variant(name), scale=0.1).eval()
    images = pictures(2, 3, 64, 96)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[0, :, 70:], padding[1, 32:], padding[1, :, 32:] = True, True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert clean.padding.shape[1:] == clean.maps[-1].shape[2:]
    bare, none = backbone(images), backbone(images, padding=torch.zeros_like(padding))
    torch.testing.assert_close(bare.summary, none.summary)
    alone = backbone(images[1:, :, :32, :32])  # without its padding: whole squares in all stages
    torch.testing.assert_close(clean.summary[1:], alone.summary, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare.summary[1:], alone.summary, atol=1e-3)  # control
    nothing = backbone(images, padding=torch.ones_like(padding))
    assert all(torch.isfinite(value).all() for value in (nothing.summary, *nothing.maps))


@pytest.mark.parametrize("name", ["nano", "nano_pcpvt"])
def test_stochastic_depth_rises_to_the_last_block(name):
    rates = [block.residual.rate for block in variant(name, drop_path=0.4).layers()]
    assert rates == linear_rates(0.4, len(rates))
    assert rates[-1] == pytest.approx(0.4)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["nano", "nano_pcpvt"])
def test_traces_whole(name):
    backbone = randomise(variant(name), scale=0.1).eval()
    images, padding = pictures(2, 3, 40, 32), torch.zeros(2, 40, 32, dtype=torch.bool)
    padding[1, 20:] = True
    torch.compiler.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for given in (None, padding):
        torch.testing.assert_close(compiled(images, padding=given).summary, backbone(images, padding=given).summary)
