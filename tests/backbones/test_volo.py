import pytest
import torch
import torch.nn.functional as F
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.volo import VARIANTS, VOLO
from patchform.errors import ModelFileError
from patchform.heads.token_label import TokenLabel
from patchform.published.volo import LAYOUTS, SCORES
from patchform.weights.rules import recognise

timm = pytest.importorskip("timm")
ROWS = [name for name in VARIANTS if name != "nano"]


class TokenLabels(nn.Module):
    """Backbone and head of the published models, by the names that the layout uses."""

    def __init__(self, backbone, classes=10):
        super().__init__()
        self.backbone = backbone
        self.head = TokenLabel(backbone.feature_info, classes=classes)

    def forward(self, images):
        return self.head.logits(self.head(self.backbone(images)))


def variant(name, **options):
    row = VARIANTS[name]
    return VOLO(**({"image_size": row.image_size} | row.options | options))


def small(**options):
    return TokenLabels(
        VOLO(image_size=64, stem=8, widths=(12, 24), depths=(2, 1, 2, 1), heads=(2, 4), **options)
    ).eval()


def timm_small(size=64, **options):
    reference = timm.models.volo.VOLO(
        layers=[2, 1, 2, 1],
        img_size=size,
        num_classes=10,
        stem_hidden_dim=8,
        embed_dims=[12, 24, 24, 24],
        num_heads=[2, 4, 4, 4],
        **options,
    )
    return randomise(reference).eval()


def pictures(size=(64, 64)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


# ------------------------------------------------------------------------------------------------------------- numbers


def test_equals_timm():
    reference, ours = timm_small(), small()
    load(ours, LAYOUTS["sail"], reference.state_dict())
    assert difference(reference, ours, pictures()) <= 10 * rounding_of(reference, pictures())


@pytest.mark.parametrize("size", [(64, 96), (48, 80), (80, 48)])  # 80 and 48 pixels: odd numbers of coarse cells
def test_equals_timm_at_other_sizes(size):
    reference = timm_small(size=size, mlp_ratio=2.0)
    backbone = VOLO(image_size=size, stem=8, widths=(12, 24), depths=(2, 1, 2, 1), heads=(2, 4), mlp_ratio=2.0)
    ours = TokenLabels(backbone).eval()
    load(ours, LAYOUTS["sail"], reference.state_dict())
    assert difference(reference, ours, pictures(size)) <= 10 * rounding_of(reference, pictures(size))


@torch.no_grad()
@pytest.mark.parametrize("grid", [(8, 8), (7, 9), (1, 4), (5, 6)])
def test_outlook_attention_equals_timm_on_any_grid(grid):
    reference = timm_small().network[0][0].attn
    ours = small().backbone.outlookers[0].attention
    state = reference.state_dict()
    ours.load_state_dict({name.replace("attn", "weights"): tensor for name, tensor in state.items()})
    cells = torch.randn(2, *grid, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(cells), reference(cells), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_equals_the_authors_code():
    _, tensors, parameters, rounding = golden("volo")
    ours, seen = small(), {}
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "sail"
    load(ours, LAYOUTS["sail"], parameters)
    backbone = ours.backbone
    watched = {
        "network0": backbone.outlookers[-1],
        **{f"network{number}": stage[-1] for number, stage in enumerate(backbone.stages, start=2)},
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
    backbone.stem.register_forward_hook(lambda m, x, y: seen.update(patch_embed=y.permute(0, 3, 1, 2)))
    backbone.merge.register_forward_hook(lambda m, x, y: seen.update(network1=y.permute(0, 2, 3, 1)))
    features = backbone(tensors["input"])
    seen["norm"] = torch.cat([features.summary[:, None], features.tokens], 1)
    seen["output"] = ours(tensors["input"])
    assert seen.keys() == rounding.keys()
    for name, error in rounding.items():
        assert (seen[name] - tensors[name]).abs().max() <= 10 * error, name


def swap_norms(model):
    outlooker = model.backbone.outlookers[1]
    outlooker.norm1, outlooker.norm2 = outlooker.norm2, outlooker.norm1


def swap_class_norms(model):
    block = model.backbone.class_blocks[0]
    block.norm1, block.norm2 = block.norm2, block.norm1


def forget_scale(model):
    model.backbone.outlookers[0].attention.scale = 1.0


def forget_position(model):
    nn.init.zeros_(model.backbone.position)


def average_overlaps(model):
    """Windows that meet are averaged, not summed."""
    attention = model.backbone.outlookers[0].attention
    counts = F.fold(torch.ones(1, 9, 16), (8, 8), 3, padding=1, stride=2)[0, 0, :, :, None]
    proj = attention.proj.forward
    attention.proj.forward = lambda x: proj(x / counts)


def forget_half(model):
    model.head.auxiliary_weight = 1.0


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [swap_norms, swap_class_norms, forget_scale, forget_position, average_overlaps, forget_half]
)
def test_control_a_fault_is_seen(change):
    reference, ours = timm_small(), small()
    load(ours, LAYOUTS["sail"], reference.state_dict())
    change(ours)
    assert difference(reference, ours, pictures()) > 100 * rounding_of(reference, pictures())


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("auxiliary", [True, False])
def test_written_back_and_recognised(auxiliary):
    backbone = VOLO(image_size=64, stem=8, widths=(12, 24), depths=(2, 1, 2, 1), heads=(2, 4))
    ours = randomise(TokenLabels(backbone) if auxiliary else Classifier(backbone))
    written = LAYOUTS["sail"].dump(ours.state_dict())
    assert written.keys() == timm_small(use_aux_head=auxiliary).state_dict().keys()
    assert recognise(LAYOUTS, written, ours.state_dict()) == "sail"
    filled, report = LAYOUTS["sail"].load(written, ours.state_dict())
    assert not report.dropped
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


def test_weights_with_an_auxiliary_classifier_do_not_go_into_a_linear_head():
    with pytest.raises(ModelFileError, match=r"has no head\.auxiliary"):
        load(Classifier(small().backbone), LAYOUTS["sail"], timm_small().state_dict())


# --------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_multiplications_are_counted_as_published(name):
    size, _, side = name.partition("_")
    side = int(side or 224)
    row = full_size("VOLO")[f"volo_{size}_{side}"]
    assert VARIANTS[name].image_size == side
    with torch.device("meta"):
        model = TokenLabels(variant(name), classes=1000).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, side, side))
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    (flops,) = (flops["flops"] for flops in row["flops"].values())
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("name", ROWS)
def test_layout_knows_all_tensors_of_timm(name):
    with torch.device("meta"):
        theirs = timm.create_model(f"volo_{name}" if "_" in name else f"volo_{name}_224").state_dict()
        ours = TokenLabels(variant(name), classes=1000)
    loaded, _ = LAYOUTS["sail"].load(theirs, ours.state_dict())
    written = LAYOUTS["sail"].dump(loaded)
    assert {key: tensor.shape for key, tensor in written.items()} == {key: t.shape for key, t in theirs.items()}


def test_published_rows_are_of_all_variants():
    assert [row.variant for row in SCORES] == ROWS
    assert [row.image_size for row in SCORES] == [VARIANTS[name].image_size for name in ROWS]


# ------------------------------------------------------------------------------------------------------------ features


@torch.no_grad()
def test_features_are_those_that_the_heads_of_the_paper_read():
    backbone = randomise(variant("nano"), scale=0.1).eval()
    features = backbone(pictures((48, 72)))
    assert [tuple(found.shape) for found in features.maps] == [(2, 12, 6, 9), (2, 24, 3, 5)]
    end = features.maps[1].flatten(2).transpose(1, 2)
    assert torch.equal(features.tokens, backbone.norm(end))  # class blocks leave the patches as they are


@torch.no_grad()
def test_native_position_is_the_table_and_others_are_resized():
    backbone = variant("nano", image_size=(32, 64)).eval()
    torch.nn.init.constant_(backbone.position, 0.3)
    torch.nn.init.zeros_(backbone.merge.weight)
    torch.nn.init.zeros_(backbone.merge.bias)
    seen = []
    backbone.stages[0][0].register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    for size in ((32, 64), (80, 40)):
        backbone(pictures(size))
    assert [tuple(x.shape[1:3]) for x in seen] == [(2, 4), (5, 3)]
    assert torch.equal(seen[0], torch.full_like(seen[0], 0.3))
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 0.3))


@torch.no_grad()
def test_what_lies_on_padding_changes_nothing():
    backbone = randomise(variant("nano"), scale=0.1).eval()
    images, padding = pictures((64, 96)), torch.zeros(2, 64, 96, dtype=torch.bool)
    torch.testing.assert_close(backbone(images, padding=padding).summary, backbone(images).summary)
    padding[0, 40:], padding[1, :, 50:] = True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    assert torch.equal(clean.summary, dirty.summary)
    assert torch.equal(clean.padding, dirty.padding)


@torch.no_grad()
@pytest.mark.parametrize("rows", [3, 4])
def test_hidden_cells_are_to_outlookers_as_what_lies_beyond(rows):
    outlooker = randomise(small().backbone.outlookers[0])
    cells = torch.randn(2, 8, 7, 12, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(2, 8, 7, dtype=torch.bool)
    hidden[:, rows:] = True
    alone = outlooker(cells[:, :rows])
    torch.testing.assert_close(outlooker(cells, hidden)[:, :rows], alone)
    assert (outlooker(cells)[:, :rows] - alone).abs().max() > 0.1  # control


def test_only_blocks_drop_paths():
    backbone = variant("nano", depths=(2, 1, 2), drop_path=0.8)
    rates = [block.residual.rate for block in backbone.layers() if hasattr(block, "residual")]
    assert rates == pytest.approx([0.4, 0.6, 0.8])
    assert len(backbone.layers()) == 2 + 3 + 1
