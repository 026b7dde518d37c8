import pytest
import torch
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.parallel_vit import VARIANTS, HierarchicalPatches, ParallelViT
from patchform.errors import UsageError
from patchform.published.parallel_vit import LAYOUTS, SCORES
from patchform.weights.rules import recognise

GOLDENS = {
    "parallel_vit": {"branches": 2, "layer_scale": None},
    "parallel_vit_ls": {"branches": 2},
    "deit3_hmlp": {"branches": 1, "stem": "hmlp"},
}
SIZES = {"patch": 16, "channels": 3}


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def small(**options):
    return ParallelViT(**{"image_size": (64, 48), "width": 48, "depth": 3, "heads": 3, **options})


def difference(reference, ours, images):
    with torch.no_grad():
        return (reference(images) - ours(images)).abs().max().item()


# ------------------------------------------------------------------------------------------------------ golden vectors


def errors(name, change=None):
    """Largest error of the stem, of every block and of the output, over what is allowed."""
    config, tensors, parameters, rounding = golden(name)
    ours = Classifier(
        ParallelViT(
            image_size=config["img_size"],
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            **GOLDENS[name],
        )
    ).eval()
    load(ours, LAYOUTS["deit"], parameters)
    if change:
        change(ours.backbone)
    seen = {}
    ours.backbone.patches.register_forward_hook(lambda m, x, y: seen.update(patch_embed=y.flatten(1, 2)))
    for number, block in enumerate(ours.backbone.blocks):
        block.register_forward_hook(lambda m, x, y, number=number: seen.update({f"block{number}": y}))
    with torch.no_grad():
        seen["output"] = ours(tensors["input"])
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * rounding[key])).item() for key in rounding}


@pytest.mark.parametrize("name", GOLDENS)
def test_equals_the_authors_code(name):
    assert max(errors(name).values()) <= 1


def swap_norms(backbone):
    one, two = backbone.blocks[0].branches
    one.norm1, two.norm1 = two.norm1, one.norm1


def swap_scales(backbone):
    one, two = backbone.blocks[1].branches
    one.scale2, two.scale2 = two.scale2, one.scale2


def one_after_the_other(backbone):
    """The second attention sees the first one's output."""
    second = backbone.blocks[0].branches[1]
    second.add_attention = lambda total, x, padding: type(second).add_attention(second, total, total, padding)


def place_the_class_token(backbone):
    backbone.class_token += backbone.position.table.detach().mean(1)


@pytest.mark.parametrize("change", [swap_norms, swap_scales, one_after_the_other, place_the_class_token])
def test_control_a_fault_is_seen(change):
    with torch.no_grad():
        assert errors("parallel_vit_ls", change)["output"] > 10  # 100 times the rounding


def test_control_norms_of_the_stem_are_told_apart():
    def swap(backbone):
        backbone.patches.proj[1], backbone.patches.proj[4] = backbone.patches.proj[4], backbone.patches.proj[1]

    assert errors("deit3_hmlp", swap)["output"] > 10


# ---------------------------------------------------------------------------------------------------------------- timm


def timm_model(name, **options):
    timm = pytest.importorskip("timm")
    size = {"img_size": (64, 48), "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 10}
    return randomise(timm.create_model(name, no_embed_class=True, **size, **options).eval())


@pytest.mark.parametrize(
    ("name", "layout", "branches"),
    [("vit_small_patch16_18x2_224", "timm_parallel", 2), ("deit3_small_patch16_224", "timm", 1)],
)
def test_equals_timm(name, layout, branches, images):
    reference = timm_model(name)
    ours = Classifier(small(branches=branches)).eval()
    source = reference.state_dict()
    assert recognise(LAYOUTS, source, ours.state_dict()) == layout
    load(ours, LAYOUTS[layout], source)
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)
    written = LAYOUTS[layout].dump(ours.state_dict(), sizes=SIZES)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[key], source[key]) for key in source)


def test_equals_timm_with_three_branches(images):
    vision_transformer = pytest.importorskip("timm.models.vision_transformer")

    class Three(vision_transformer.ParallelThingsBlock):
        def __init__(self, *args, **options):
            super().__init__(*args, num_parallel=3, **options)

    reference = timm_model("vit_small_patch16_18x2_224", block_fn=Three)
    ours = Classifier(small(branches=3)).eval()
    load(ours, LAYOUTS["timm_parallel"], reference.state_dict())
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


def test_control_swapped_branches_are_seen(images):
    reference = timm_model("vit_small_patch16_18x2_224")
    ours = Classifier(small()).eval()
    source = dict(reference.state_dict())
    one, two = (f"blocks.1.attns.{n}.attn.proj.weight" for n in (0, 1))
    source[one], source[two] = source[two], source[one]
    load(ours, LAYOUTS["timm_parallel"], source)
    assert difference(reference, ours, images) > 100 * rounding_of(reference, images)


# ------------------------------------------------------------------------------------------------------ sizes, layouts

NAMES = {
    "s18x2": "deit_small_patch16_18x2",
    "s36x1": "deit_small_patch16_36",
    "b18x2": "deit_base_patch16_18x2",
    "b36x1": "deit_base_patch16_36x1",
    "h26x2": "deit_huge_patch14_26x2",
    "h52x1": "deit_huge_patch14_52",
    "deit3_ti": "deit_tiny_patch16",
    "deit3_s": "deit_small_patch16",
    "deit3_m": "deit_medium_patch16",
    "deit3_b": "deit_base_patch16",
    "deit3_l": "deit_large_patch16",
    "deit3_h": "deit_huge_patch14",
    "deit3_g40": "deit_giant_40_patch14",
    "deit3_g48": "deit_Giant_48_patch14",
}


def classifier(variant, **options):
    """With 1000 classes, without memory."""
    row = VARIANTS[variant]
    with torch.device("meta"):
        return Classifier(row.build(**{"image_size": row.image_size, **row.options, **options}), classes=1000).eval()


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def multiplications(model, size):
    """Multiply-adds of one image, in units of 1e9."""
    image = torch.empty(1, 3, size, size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("variant", NAMES)
def test_parameters_and_multiplications_equal_the_published_counts(variant):
    table = full_size("Parallel ViT / DeiT-III")
    with_scales, without = table[f"{NAMES[variant]}_LS"], table.get(NAMES[variant])
    model = classifier(variant)
    assert parameters(model) == with_scales["params"]
    assert multiplications(model, 224) == with_scales["flops"]["224x224"]["flops"] / 2e9
    if without:  # the small and the base ones
        assert parameters(classifier(variant, layer_scale=None)) == without["params"]


@pytest.mark.parametrize(
    ("variant", "gmacs", "timm_name"),
    [("s", 15.5, "small"), ("b", 55.5, "base"), ("l", 191.2, "large")],
)
def test_counts_at_384(variant, gmacs, timm_name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(f"deit3_{timm_name}_patch16_384")
    ours = classifier(f"deit3_{variant}384")
    assert parameters(ours) == parameters(theirs)
    assert multiplications(ours, 384) == pytest.approx(gmacs, rel=0.005)  # the authors' README


def test_every_row_is_counted():
    large = {"deit3_s384", "deit3_b384", "deit3_l384"}
    assert set(VARIANTS) == {"nano", *NAMES, *large}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{"branches": 2}, {"branches": 1}, {"branches": 2, "stem": "hmlp"}])
def test_written_back_and_recognised(layout, options):
    ours = randomise(Classifier(small(**options)))
    written = LAYOUTS[layout].dump(ours.state_dict(), sizes=SIZES)
    assert recognise(LAYOUTS, written, ours.state_dict()) == layout
    filled, _ = LAYOUTS[layout].load(written, ours.state_dict())
    assert filled.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


def test_one_branch_without_scales_has_the_same_names_in_two_layouts():
    ours = Classifier(small(branches=1, layer_scale=None))
    written = LAYOUTS["deit"].dump(ours.state_dict(), sizes=SIZES)
    assert recognise(LAYOUTS, written, ours.state_dict()) == "deit"
    one, other = (LAYOUTS[name].load(written, ours.state_dict())[0] for name in ("deit", "timm"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_published_rows_have_their_size():
    assert {(row.variant, row.image_size) for row in SCORES} == {
        (f"deit3_{name}", 384 if name.endswith("384") else 224) for name in ("s", "s384", "b", "b384", "l", "l384", "h")
    }


# ---------------------------------------------------------------------------------------------------------- mechanisms


def test_branches_are_dropped_one_by_one():
    torch.manual_seed(0)
    block = randomise(small(depth=1, drop_path=0.4)).blocks[0].train()
    for branch in block.branches:
        branch.scale2.gamma.data.zero_()
    x = torch.randn(64, 5, 48)
    with torch.no_grad():
        one, two = (branch.attention_branch(x, None, None) for branch in block.branches)
        found = block(x)
    kept = [x + (a * one + b * two) / 0.6 for a in (0, 1) for b in (0, 1)]
    gaps = torch.stack([(found - choice).abs().amax((1, 2)) for choice in kept])
    assert gaps.amin(0).max() < 1e-5
    assert set(gaps.argmin(0).tolist()) == {0, 1, 2, 3}


def test_stochastic_depth_does_not_rise():
    backbone = small(drop_path=0.3)
    assert {branch.residual.rate for block in backbone.blocks for branch in block.branches} == {0.3}


def test_patches_of_the_stem_do_not_know_of_each_other(images):
    stem = randomise(HierarchicalPatches(3, 48, 16)).eval()
    other = images.clone()
    other[:, :, 16:32, 32:48] += 1
    with torch.no_grad():
        changed = (stem(other) - stem(images)).abs().amax((0, 3)) > 0
    assert changed.nonzero().tolist() == [[1, 2]]


def test_the_class_token_has_no_position():
    backbone = small()
    assert backbone.position.table.shape == (1, 12, 48)
    assert backbone.class_token.shape == (1, 1, 48)


def test_maps_from_chosen_depths(images):
    backbone = small(maps_from=(1, 3)).eval()
    features = backbone(images)
    assert [tuple(m.shape) for m in features.maps] == [(2, 48, 4, 3)] * 2
    torch.testing.assert_close(backbone.norm(features.maps[1].flatten(2).mT), features.tokens)


def test_stems_that_cannot_be_built():
    with pytest.raises(UsageError, match="those of 16"):
        small(stem="hmlp", patch=14)
    with pytest.raises(UsageError, match="linear, hmlp"):
        small(stem="mlp")
