import json

import pytest
import torch
from reference import FOLDER, OWN, Classifier, full_size, golden, load, randomise
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.region_vit import VARIANTS, RegionViT, WithinWindow
from patchform.errors import ModelFileError, UsageError
from patchform.published.region_vit import LAYOUTS, SCORES
from patchform.weights.rules import recognise

GOLDENS = ("regionvit_3conv_224", "regionvit_1conv_peg_mask", "regionvit_pad_square")
NAMES = {"ti": "tiny", "s": "small", "m": "medium", "b": "base"}


def variant(name, **options):
    return RegionViT(**(VARIANTS[name].options | options))


def built_as(config):
    backbone = RegionViT(
        widths=tuple(config["embed_dim"][1:]),
        depths=tuple(config["depth"]),
        heads=tuple(config["num_heads"]),
        window=config["kernel_sizes"][0],
        mlp_ratio=config["mlp_ratio"],
        stem=config["patch_conv_type"],
        peg=config.get("peg", False),
        norm_maps=config.get("det_norm", False),
    )
    return Classifier(backbone).eval()


@torch.no_grad()
def errors(name, change=None):
    """Largest error of the stems, of every stage, of the maps and of the output, over what is allowed."""
    config, tensors, parameters, rounding = golden(name)
    ours = built_as(config)
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "ibm"
    load(ours, LAYOUTS["ibm"], parameters)
    if change:
        change(ours.backbone)
    seen = {}
    for key, stem in (("regional_embed", ours.backbone.regions), ("patch_embed", ours.backbone.cells)):
        stem.register_forward_hook(lambda m, x, y, key=key: seen.update({key: y.permute(0, 3, 1, 2)}))
    for number, stage in enumerate(ours.backbone.stages):

        def keep(stage, inputs, out, number=number):
            for key, part in zip(("regional", "local"), out):
                seen[f"stage{number}.{key}"] = part.permute(0, 3, 1, 2)

        stage.register_forward_hook(keep)
    features = ours.backbone(tensors["input"])
    seen["output"] = ours.head(features)
    if config.get("det_norm"):
        seen |= {f"detection.res{number}": found for number, found in enumerate(features.maps, start=2)}
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * error)).item() for key, error in rounding.items()}


@pytest.mark.parametrize("name", GOLDENS)
def test_same_numbers_as_the_authors_code(name):
    assert max(errors(name).values()) <= 1


def swap_norms(backbone):
    block = backbone.stages[1].blocks[0]
    block.norm0, block.norm1 = block.norm1, block.norm0


def turn_positions(backbone):
    """The published table read as the difference query less key."""
    table = backbone.stages[1].blocks[0].attention.position.table
    table.copy_(table.flip(0))


def bias_regions(backbone):
    """Positions among regions too."""
    for position in (m for m in backbone.modules() if isinstance(m, WithinWindow)):
        position.forward = lambda q, k, grid, own=position: super(WithinWindow, own).forward(q, k, (q.shape[-2], 1))


def forget_peg(backbone):
    torch.nn.init.zeros_(backbone.stages[0].peg.weight)


def see_everything(backbone):
    for stage in backbone.stages:
        stage.masks = lambda *arguments: (None, None)


def pad_at_the_end(backbone):
    """Regions that begin at the first pixel."""
    backbone.regions.register_forward_pre_hook(lambda m, x: x[0].roll((-4, -4), (2, 3)))


@pytest.mark.parametrize("change", [swap_norms, turn_positions, bias_regions, see_everything, pad_at_the_end])
def test_control_a_fault_is_seen(change):
    assert max(errors("regionvit_pad_square", change).values()) > 100


def test_control_peg_is_seen():
    assert errors("regionvit_1conv_peg_mask", forget_peg)["output"] > 100


def test_control_a_correct_mask_is_not_the_published_one(monkeypatch):
    """The published mask lets the window in the corner see cells that are not there."""
    from patchform.backbones import region_vit

    published = region_vit._published_mask

    def correct(grid, missing, side, device):
        allowed = published(grid, missing, side, device).unflatten(1, grid).clone()
        column_of_windows, row_of_windows = allowed[:, 0, -1], allowed[:, -1, 0]
        allowed[:, -1, -1] = column_of_windows & row_of_windows
        return allowed.flatten(1, 2)

    monkeypatch.setattr(region_vit, "_published_mask", correct)
    assert errors("regionvit_pad_square")["stage0.local"] > 100


def test_own_copy_is_the_reference():
    if not (FOLDER / "golden").is_dir():
        pytest.skip("no reference vectors (set PATCHFORM_REFERENCE)")
    name = "regionvit_pad_square"
    copy, source = ((home / f"{name}.safetensors").read_bytes() for home in (OWN, FOLDER / "golden"))
    assert copy == source
    copy, source = (json.loads((home / f"{name}.json").read_text()) for home in (OWN, FOLDER / "golden"))
    assert copy["config"] == source["config"]
    assert copy["golden"].items() <= source["golden"].items()


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("norm_maps", [False, True])
@pytest.mark.parametrize("stem", ["3conv", "1conv"])
def test_written_back_and_recognised(stem, norm_maps):
    ours = randomise(Classifier(variant("nano", stem=stem, norm_maps=norm_maps, window=3)))
    written = LAYOUTS["ibm"].dump(ours.state_dict(), sizes={"patch": 12, "channels": 3})
    assert recognise(LAYOUTS, written, ours.state_dict()) == "ibm"
    filled, _ = LAYOUTS["ibm"].load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


@pytest.mark.parametrize("name", GOLDENS)
def test_reference_weights_come_back_bit_by_bit(name):
    config, _, parameters, _ = golden(name)
    ours = built_as(config)
    load(ours, LAYOUTS["ibm"], parameters)
    side = 4 * config["kernel_sizes"][0]
    written = LAYOUTS["ibm"].dump(ours.state_dict(), sizes={"patch": side, "channels": 3})
    assert written.keys() == parameters.keys()
    assert all(torch.equal(tensor, parameters[key]) for key, tensor in written.items())


def test_two_names_of_one_layer_hold_one_value():
    ours = Classifier(variant("nano"))
    written = dict(LAYOUTS["ibm"].dump(ours.state_dict(), sizes={"patch": 8, "channels": 3}))
    written["layers.1.block.0.proj_cls.2.weight"] = written["layers.1.block.0.proj_cls.2.weight"] + 1
    with pytest.raises(ModelFileError, match="the two differ"):
        load(ours, LAYOUTS["ibm"], written)


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "nano"])
def test_parameters_and_multiplications_are_counted_as_published(name):
    size, _, rest = name.partition("_")
    row = full_size("RegionViT")[f"regionvit_{NAMES[size]}" + (rest and f"_{rest}")]
    with torch.device("meta"):
        model = Classifier(variant(name), classes=1000).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, 224, 224))
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params"]
    assert counter.get_total_flops() == row["flops"]["224x224"]["flops"]


def test_published_rows_are_those_of_the_readme():
    assert {row.variant: row.scores["imagenet-1k top-1"] for row in SCORES} == {
        "ti": 80.4,
        "s": 82.6,
        "m": 83.1,
        "b": 83.2,
    }


# ------------------------------------------------------------------------------------------------------------ features


@torch.no_grad()
@pytest.mark.parametrize("stem", ["3conv", "1conv"])
@pytest.mark.parametrize("size", [(64, 64), (65, 30), (50, 87), (8, 5)])
def test_every_window_has_a_region_and_a_cell(stem, size):
    backbone = randomise(variant("nano", stem=stem, window=3), scale=0.1).eval()
    grids = []
    for stage in backbone.stages:
        stage.register_forward_hook(lambda m, x, y: grids.append([part.shape[1:3] for part in y]))
    features = backbone(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    for regions, cells in grids:
        assert all(3 * (number - 1) < side <= 3 * number for number, side in zip(regions, cells))
    assert torch.equal(features.tokens, backbone.norm(features.maps[-1].permute(0, 2, 3, 1)).flatten(1, 2))
    assert all(value.isfinite().all() for value in (*features.maps, features.summary))


@torch.no_grad()
def test_a_region_sees_its_own_cells_in_the_first_step():
    """A pixel reaches the cells of its own window, and those of others only by way of their regions."""
    backbone = randomise(variant("nano", depths=(1, 1), peg=False, stem="1conv", window=4)).eval()
    block = backbone.stages[0].blocks[0]
    windows = torch.randn(1, 6, 17, 16, generator=torch.Generator().manual_seed(0))
    other = windows.clone()
    other[:, 2, 5] *= -1
    changed = (block(windows) - block(other)).abs().amax(-1)[0] > 1e-6
    assert changed[2].all()
    assert not changed[[0, 1, 3, 4, 5]].any()
    other = windows.clone()
    other[:, 2, 0] *= -1  # the region
    assert ((block(windows) - block(other)).abs().amax(-1)[0] > 1e-6).all()


@torch.no_grad()
def test_what_lies_on_padding_changes_nothing():
    backbone = randomise(variant("nano", window=2), scale=0.1).eval()
    images = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 40, 64, dtype=torch.bool)
    bare, none = backbone(images), backbone(images, padding=padding)
    torch.testing.assert_close(none.summary, bare.summary)
    padding[0, 21:], padding[1, :, 30:] = True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)


@torch.no_grad()
def test_padding_is_nobodys_key():
    stage = randomise(variant("nano", window=2)).eval().stages[1]
    hidden = torch.zeros(2, 3, 4, dtype=torch.bool)  # by region
    hidden[1, :, 3] = True
    by_cell = hidden.repeat_interleave(2, 1).repeat_interleave(2, 2)
    seen, allowed = stage.masks((3, 4), (6, 8), by_cell, torch.empty(2, 6, 8, 32))
    windows = torch.randn(2, 12, 5, 32, generator=torch.Generator().manual_seed(1))
    other = torch.where(hidden.flatten(1)[..., None, None], -windows, windows)
    block, kept = stage.blocks[0], ~hidden.flatten(1)
    assert torch.equal(block(windows, seen, allowed)[kept], block(other, seen, allowed)[kept])
    assert not torch.equal(block(windows)[kept], block(other)[kept])  # control


def test_drop_path_drops_branches_of_images():
    backbone = variant("nano", drop_path=0.6)
    assert [block.residual.rate for block in backbone.layers()] == pytest.approx([0, 0.2, 0.4, 0.6])
    torch.manual_seed(0)
    backbone(torch.randn(6, 3, 40, 40)).summary.square().sum().backward()
    used = [name for name, p in backbone.named_parameters() if p.grad is None and "stages.1" not in name]
    assert used == []


def test_unknown_stem_is_refused():
    with pytest.raises(UsageError, match="3conv, 1conv"):
        variant("nano", stem="conv")
