"""Published weights of swin, pvt, twins, region_vit, dual_vit and axial: of an installed reference, a golden vector, or
one of these renamed by hand to names that no installed reference has."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from reference import golden, randomise, rounding_of
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import patchform as pf
from patchform.records import Preprocessing

HEAD = re.compile(r"(head|classifier|fc)\.")
CONSTANTS = ("relative_position_index", "relative_coords_table", "attn_mask", "flatten_index")
"""Endings of buffers that follow from the architecture: they are not written back."""


def logits(model, images):
    raw = model.head(model.backbone(images))
    return [model.head.logits(raw) if hasattr(model.head, "logits") else raw]


@dataclass(frozen=True)
class Published:
    """Weights by the names of a reference, and what it computes with them."""

    weights: dict[str, torch.Tensor]
    images: torch.Tensor
    wanted: list[torch.Tensor]
    error: list[float]
    """Of float32 against float64, in the reference."""
    backbone: str
    options: dict[str, object] = field(default_factory=dict)
    side: int = 64
    head: str = "linear"
    classifier: tuple[torch.Tensor, torch.Tensor] | None = None
    """Of weights that have none, to compare logits by."""
    look: Callable = logits
    lost: tuple[str, ...] = ()
    """Beginnings of names that have no place here, beside constants."""

    @property
    def headless(self):
        return not any(HEAD.match(name) for name in self.weights)


def built(of):
    torch.manual_seed(0)
    return pf.build_model(
        "classification",
        backbone=of.backbone,
        head=of.head,
        classes=[f"class {number}" for number in range(10)],
        preprocessing=Preprocessing(size=(of.side, of.side)),
        backbone_options=of.options,
    ).eval()


@torch.no_grad()
def excess(model, of):
    """Largest error over ten times that of rounding."""
    if of.classifier is not None:
        model.head.classifier.load_state_dict(dict(zip(("weight", "bias"), of.classifier)))
    found = of.look(model, of.images)
    pairs = zip(found, of.wanted, of.error, strict=True)
    return max(((one - other).abs().max() / (10 * error)).item() for one, other, error in pairs)


def stored(name, backbone, options, *, side=64, **others):
    """A golden vector."""
    _, tensors, parameters, rounding = golden(name)
    images = tensors["input"] if "input" in tensors else pictures(2, 96, 128)  # left out of one; seeded alike
    wanted, error = ([rows["output"]] if "output" in rows else [] for rows in (tensors, rounding))
    return Published(parameters, images, wanted, error, backbone, options, side, **others)


def live(reference, backbone, options, images, *, side=64):
    """An installed model, its weights random already."""
    with torch.no_grad():
        wanted, error = reference(images), rounding_of(reference, images)
    of = reference.model if isinstance(reference, Logits) else reference
    return Published(dict(of.state_dict()), images, [wanted], [error], backbone, options, side)


class Logits(nn.Module):
    """A model of transformers that answers with a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).logits


def pictures(batch, height, width):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def backbone(of, root, head):
    """The same model without its head and without what its names begin with."""
    kept = {name.removeprefix(root): tensor for name, tensor in of.weights.items() if not name.startswith(head)}
    return replace(of, weights=kept, classifier=(of.weights[f"{head}weight"], of.weights[f"{head}bias"]))


def renamed(of, *pairs):
    """Parts of names replaced, (expression, by what) in this order."""

    def rename(name):
        return functools.reduce(lambda text, pair: re.sub(*pair, text), pairs, name)

    return replace(of, weights={rename(name): tensor for name, tensor in of.weights.items()})


# ---------------------------------------------------------------------------------------------------------------- swin

SWIN = {"width": 16, "depths": (2, 2, 2), "heads": (1, 2, 4), "window": 4}
SWIN_VERSIONS = {"": "swin/t", "v2": "swin/v2_t_w8"}
GOLDEN_SWIN = {"width": 8, "depths": (2, 2, 3, 2), "heads": (1, 2, 4, 8)}


def swin_golden(version):
    window = 8 if version else 4
    return stored(f"swin_{version or 'v1'}", SWIN_VERSIONS[version], {**GOLDEN_SWIN, "window": window})


def swin_timm(version):
    timm = pytest.importorskip("timm")
    build = timm.models.SwinTransformerV2 if version else timm.models.SwinTransformer
    size = {"embed_dim": 16, "depths": SWIN["depths"], "num_heads": SWIN["heads"], "window_size": 4}
    theirs = randomise(build(img_size=64, num_classes=10, **size).eval())
    return live(theirs, SWIN_VERSIONS[version], SWIN, pictures(2, 64, 64))


def swin_torchvision(version):
    torchvision = pytest.importorskip("torchvision")
    swin = torchvision.models.swin_transformer
    kinds = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2} if version else {}
    theirs = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2] * 4, num_heads=[1, 2, 4, 8], window_size=[4, 4], num_classes=10,
        **kinds,
    ).eval()  # fmt: skip
    constants = {name: tensor.clone() for name, tensor in theirs.state_dict().items() if name.endswith(CONSTANTS)}
    randomise(theirs)
    for name, tensor in theirs.named_parameters():
        if version and name.endswith("qkv.bias"):  # that of the keys is never read: what is written back is zero
            tensor.data[len(tensor) // 3 : 2 * len(tensor) // 3] = 0
    theirs.load_state_dict({**theirs.state_dict(), **constants})
    options = {**SWIN, "depths": (2,) * 4, "heads": (1, 2, 4, 8)}
    return live(theirs, SWIN_VERSIONS[version], options, pictures(2, 128, 128), side=128)


def swin_transformers(version, folder=None):
    transformers = pytest.importorskip("transformers")
    kind = f"Swin{version}"
    size = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 4], "window_size": 4, "num_labels": 10}
    config = getattr(transformers, f"{kind}Config")(image_size=64, **size)
    theirs = Logits(randomise(getattr(transformers, f"{kind}ForImageClassification")(config).eval()))
    of = live(theirs, SWIN_VERSIONS[version], SWIN, pictures(2, 64, 64))
    if folder is not None:
        theirs.model.save_pretrained(folder)
        of = replace(of, weights=load_file(folder / "model.safetensors"))
    return of


def swin_segmenter(folder):
    """The backbone in a file of UperNet: the norms of its first maps are compared through."""
    transformers = pytest.importorskip("transformers")
    size = {"embed_dim": 16, "depths": [2] * 4, "num_heads": [1, 2, 4, 8], "window_size": 4}
    config = transformers.SwinConfig(image_size=128, out_features=[f"stage{n}" for n in range(1, 5)], **size)
    upernet = transformers.UperNetConfig(backbone_config=config, num_labels=3, hidden_size=16)
    theirs = randomise(transformers.UperNetForSemanticSegmentation(upernet).eval())
    theirs.save_pretrained(folder)
    file = load_file(folder / "model.safetensors")
    weights = {name.removeprefix("backbone."): file[name] for name in file if name.startswith("backbone.")}
    images, backbone = pictures(1, 256, 256), theirs.backbone  # it displaces windows even where one covers the map
    with torch.no_grad():
        wanted = backbone(images).feature_maps
        double = backbone.double()(images.double()).feature_maps
        error = [(one - other).abs().max().item() for one, other in zip(wanted, double)]
    backbone.float()

    def look(model, images):
        features = model.backbone(images)
        cells = [map_.permute(0, 2, 3, 1) for map_ in features.maps]
        normed = [backbone.hidden_states_norms[name](map_) for name, map_ in zip(("stage1", "stage2", "stage3"), cells)]
        normed.append(features.tokens.unflatten(1, cells[-1].shape[1:3]))
        return [map_.permute(0, 3, 1, 2) for map_ in normed]

    options = {**SWIN, "depths": (2,) * 4, "heads": (1, 2, 4, 8)}
    lost = ("hidden_states_norms.stage1", "hidden_states_norms.stage2", "hidden_states_norms.stage3", "swin.")
    return Published(weights, images, list(wanted), error, "swin/t", options, 128, look=look, lost=lost)


def swin_dense(_folder):
    of = backbone(renamed(swin_golden(""), (r"^norm\.", "norm3.")), "", "head.")
    norms = {f"norm{s}.{p}": torch.randn(8 << s) for s in range(3) for p in ("weight", "bias")}
    return replace(of, weights={**of.weights, **norms}, lost=("norm0.", "norm1.", "norm2."))


def by_unfold(tensor):
    """From the order in which Microsoft joins 2x2 cells (four strided slices) to that of nn.Unfold."""
    places = torch.arange(tensor.shape[-1]).unflatten(0, (4, -1))  # slice, channel
    square = torch.empty(places.shape[1], 2, 2)
    for part, (row, column) in zip(places, ((0, 0), (1, 0), (0, 1), (1, 1))):
        square[:, row, column] = part.float()
    return tensor[..., F.unfold(square[None], 2)[0, :, 0].long()]


def swin_mm(version, *, unfold=by_unfold):
    """As a classifier of mmpretrain, renamed by hand."""
    of = renamed(
        swin_golden(version),
        (r"^layers", "stages"), (r"attn\.", "attn.w_msa."), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
        (r"embed\.proj", "embed.projection"), (r"^norm\.", "norm3."), ("^head", "head.fc"),
    )  # fmt: skip
    weights = {}
    for name, tensor in of.weights.items():
        if "downsample" in name:
            merged = "reduction" in name or not version
            weights[later(name) if version else name] = unfold(tensor) if merged else tensor
        elif not name.endswith("attn_mask"):  # they make it as they go
            weights[name] = tensor
    return renamed(replace(of, weights=weights), (r"^(?!head)", "backbone."))


def later(name):
    """Version 2 merges at the start of the next stage."""
    _, stage, rest = name.split(".", 2)
    return f"stages.{int(stage) + 1}.{rest}"


# ----------------------------------------------------------------------------------------------------------------- pvt

PVT = {"widths": (8, 16, 20, 32), "depths": (1, 2, 1, 2), "heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}
LINEAR = {**PVT, "attention": "linear"}


def pvt_golden(name="pvt_v2", **options):
    return stored(name, "pvt/v1_ti" if "v1" in name else "pvt/v2_b1", {**PVT, **options})


def pvt_timm(attention):
    pvt_v2 = pytest.importorskip("timm.models.pvt_v2")
    theirs = pvt_v2.PyramidVisionTransformerV2(
        num_classes=10, embed_dims=PVT["widths"], depths=PVT["depths"], num_heads=PVT["heads"],
        linear=attention == "linear",
    )  # fmt: skip
    return live(randomise(theirs.eval()), "pvt/v2_b1", {**PVT, "attention": attention}, pictures(2, 64, 64))


def pvt_transformers(version):
    transformers = pytest.importorskip("transformers")
    kind = "Pvt" if version == 1 else "PvtV2"
    sizes = {"hidden_sizes": "widths", "depths": "depths", "num_attention_heads": "heads", "mlp_ratios": "mlp_ratios"}
    options = {theirs: list(PVT[ours]) for theirs, ours in sizes.items()}
    config = getattr(transformers, f"{kind}Config")(num_labels=10, layer_norm_eps=1e-6, image_size=64, **options)
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for name, module in theirs.named_modules():  # one eps for all norms there; two in the authors' code
        if name.endswith(".layer_norm") and ("embedding" in name or ".attention" in name):
            module.eps = 1e-5
    backbone = "pvt/v1_ti" if version == 1 else "pvt/v2_b1"
    return live(Logits(randomise(theirs)), backbone, PVT, pictures(2, 64, 64))


def pvt_mm(_folder):
    """As the backbone of a detector of mmdetection, by hand: q and kv are one, linear layers are convolutions."""
    of = backbone(pvt_golden(), "", "head.")
    weights = {}
    for name, tensor in of.weights.items():
        stage, _, rest = name.partition(".")
        number = int(stage[-1]) - 1
        if stage.startswith("patch_embed"):
            weights[f"layers.{number}.0.{rest.replace('proj', 'projection')}"] = tensor
        elif stage.startswith("norm"):
            weights[f"layers.{number}.2.{rest}"] = tensor
        elif ".q." in rest:
            joined = torch.cat([tensor, of.weights[name.replace(".q.", ".kv.")]])
            weights[f"layers.{number}.1.{rest.replace('attn.q.', 'attn.attn.in_proj_')}"] = joined
        elif ".kv." not in rest:
            for one, other in (("attn.proj", "attn.attn.out_proj"), ("mlp.fc1", "ffn.layers.0"),
                               ("mlp.dwconv.dwconv", "ffn.layers.1"), ("mlp.fc2", "ffn.layers.4")):  # fmt: skip
                rest = rest.replace(one, other)
            wide = "ffn" in rest and tensor.dim() == 2
            weights[f"layers.{number}.1.{rest}"] = tensor[..., None, None] if wide else tensor
    return replace(of, weights=weights)


# --------------------------------------------------------------------------------------------------------------- twins

PCPVT = {"widths": (8, 16, 20, 32), "depths": (2, 2, 3, 1), "heads": (1, 2, 5, 8), "mlp_ratios": (8, 8, 4, 4)}
SVT = {"widths": (8, 16, 24, 32), "depths": (2, 2, 3, 2), "heads": (2, 2, 3, 4), "mlp_ratios": (4, 4, 4, 4)}


def twins_timm(kind):
    twins = pytest.importorskip("timm.models.twins")
    size, windows = (PCPVT, None) if kind == "pcpvt" else (SVT, (2,) * 4)
    theirs = twins.Twins(
        img_size=64, num_classes=10, embed_dims=size["widths"], depths=size["depths"], num_heads=size["heads"],
        mlp_ratios=size["mlp_ratios"], wss=windows,
    )  # fmt: skip
    options = {**size, "window": 2} if windows else size
    return live(randomise(theirs.eval()), f"twins/{kind}_s", options, pictures(2, 64, 64))


def twins_dense(_folder):
    """Two maps: those before the authors' code cuts off the last row or column of an odd one."""
    of = stored(
        "twins_svt_dense", "twins/svt_s", {**SVT, "window": 4, "norm_maps": True}, look=first_maps, lost=("norm.",)
    )
    _, tensors, _, rounding = golden("twins_svt_dense")
    names = ("output.0", "output.1")
    return replace(of, wanted=[tensors[name] for name in names], error=[rounding[name] for name in names])


def first_maps(model, images):
    return model.backbone(images).maps[:2]


def twins_mm(name, backbone, options):
    """As a classifier of mmpretrain, renamed by hand."""
    return renamed(
        stored(name, backbone, options),
        (r"^(patch_embeds\.\d)\.proj", r"\1.projection"), (r"^pos_block\.(\d)\.proj\.0", r"position_encodings.\1.proj"),
        ("^blocks", "stages"), ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"),
        (r"^norm\.", "norm_after_stage3."), ("^head", "head.fc"), (r"^(?!head)", "backbone."),
    )  # fmt: skip


def twins_mmseg(folder):
    """As the backbone of a segmenter of mmsegmentation, renamed by hand: q and kv are one where all cells are seen."""
    of = renamed(
        twins_dense(folder),
        (r"^(patch_embeds\.\d)\.proj", r"\1.projection"), (r"^pos_block\.(\d)\.proj\.0", r"position_encodings.\1.proj"),
        ("mlp.fc1", "ffn.layers.0.0"), ("mlp.fc2", "ffn.layers.1"), (r"^blocks\.(\d)\.(\d)", r"layers.\1.\2"),
        (r"^layers\.(\d)\.1\.attn\.proj", r"layers.\1.1.attn.attn.out_proj"),
    )  # fmt: skip
    weights = {}
    for name, tensor in of.weights.items():
        if ".attn.q." in name:
            joined = torch.cat([tensor, of.weights[name.replace(".q.", ".kv.")]])
            weights[name.replace("attn.q.", "attn.attn.in_proj_")] = joined
        elif ".attn.kv." not in name and not name.startswith(("norm.", "head.")):
            weights[name] = tensor
    return replace(of, weights=weights, lost=())


# --------------------------------------------------------------------------------------- region_vit, dual_vit and axial


def region_golden(name):
    config, *_ = golden(name)
    options = {
        "widths": tuple(config["embed_dim"][1:]),
        "depths": tuple(config["depth"]),
        "heads": tuple(config["num_heads"]),
        "window": config["kernel_sizes"][0],
        "mlp_ratio": config["mlp_ratio"],
        "stem": config["patch_conv_type"],
        "peg": config.get("peg", False),
        "norm_maps": config.get("det_norm", False),
    }
    return stored(name, "region_vit/ti", options)


DUAL = {"stem": 8, "widths": (8, 16, 24, 32), "depths": (1, 2, 3, 2), "heads": (1, 2, 3, 4)}


def dual_dense(_folder):
    of = stored("dualvit_dense_96x128", "dual_vit/s", {**DUAL, "summary": "mean"}, look=maps)
    _, tensors, _, rounding = golden("dualvit_dense_96x128")
    return replace(of, wanted=[tensors[name] for name in rounding], error=list(rounding.values()))


def maps(model, images):
    return model.backbone(images).maps


def axial_golden(_folder):
    config, *_ = golden("axial_net_224")
    options = {"width": int(64 * config["s"]), "depths": config["layers"], "heads": config["groups"]}
    return stored("axial_net_224", "axial/26s", options, side=224)


# ----------------------------------------------------------------------------------------------------------- the table

TABLE = {
    ("microsoft", "swin golden"): lambda _: swin_golden(""),
    ("microsoft", "swin v2 golden"): lambda _: swin_golden("v2"),
    ("microsoft_dense", "swin renamed"): swin_dense,
    ("timm", "swin"): lambda _: swin_timm(""),
    ("timm", "swin v2"): lambda _: swin_timm("v2"),
    ("torchvision", "swin"): lambda _: swin_torchvision(""),
    ("torchvision_v2", "swin v2"): lambda _: swin_torchvision("v2"),
    ("transformers", "swin file"): lambda folder: swin_transformers("", folder),
    ("transformers_backbone", "swin file"): lambda folder: backbone(
        swin_transformers("", folder), "swin.", "classifier."
    ),
    ("transformers_5", "swin"): lambda _: swin_transformers(""),
    ("transformers_5_backbone", "swin"): lambda _: backbone(swin_transformers(""), "swin.", "classifier."),
    ("transformers_v2", "swin v2 file"): lambda folder: swin_transformers("v2", folder),
    ("transformers_v2_backbone", "swin v2"): lambda _: backbone(swin_transformers("v2"), "swinv2.", "classifier."),
    ("transformers_dense", "swin segmenter's file"): swin_segmenter,
    ("mm", "swin renamed"): lambda _: swin_mm(""),
    ("mm_backbone", "swin renamed"): lambda _: backbone(swin_mm(""), "backbone.", "head.fc."),
    ("mm_v2", "swin v2 renamed"): lambda _: swin_mm("v2"),
    ("mm_v2_backbone", "swin v2 renamed"): lambda _: backbone(swin_mm("v2"), "backbone.", "head.fc."),
    ("authors", "pvt v1 golden"): lambda _: pvt_golden("pvt_v1"),
    ("authors", "pvt v2 golden"): lambda _: pvt_golden(),
    ("authors", "pvt v2 linear golden"): lambda _: pvt_golden("pvt_v2_li", attention="linear"),
    ("authors", "pvt v2 dense"): lambda _: backbone(pvt_golden(), "", "head."),
    ("timm", "pvt v2"): lambda _: pvt_timm("reduced"),
    ("timm", "pvt v2 linear"): lambda _: pvt_timm("linear"),
    ("transformers_v1", "pvt v1"): lambda _: pvt_transformers(1),
    ("transformers_v1_backbone", "pvt v1"): lambda _: backbone(pvt_transformers(1), "pvt.", "classifier."),
    ("transformers", "pvt v2"): lambda _: pvt_transformers(2),
    ("transformers_backbone", "pvt v2"): lambda _: backbone(pvt_transformers(2), "pvt_v2.", "classifier."),
    ("mm_backbone", "pvt v2 renamed"): pvt_mm,
    ("meituan", "twins pcpvt golden"): lambda _: stored("twins_pcpvt", "twins/pcpvt_s", PCPVT),
    ("meituan", "twins svt golden"): lambda _: stored("twins_svt", "twins/svt_s", SVT),
    ("meituan_dense", "twins svt dense golden"): twins_dense,
    ("meituan", "twins pcpvt timm"): lambda _: twins_timm("pcpvt"),
    ("meituan", "twins svt timm"): lambda _: twins_timm("svt"),
    ("mm", "twins pcpvt renamed"): lambda _: twins_mm("twins_pcpvt", "twins/pcpvt_s", PCPVT),
    ("mm", "twins svt renamed"): lambda _: twins_mm("twins_svt", "twins/svt_s", SVT),
    ("mm_backbone", "twins svt renamed"): lambda _: backbone(
        twins_mm("twins_svt", "twins/svt_s", SVT), "backbone.", "head.fc."
    ),
    ("mmseg_svt", "twins svt dense renamed"): twins_mmseg,
    ("ibm", "region_vit golden"): lambda _: region_golden("regionvit_3conv_224"),
    ("ibm", "region_vit dense golden"): lambda _: region_golden("regionvit_1conv_peg_mask"),
    ("ibm", "region_vit odd golden"): lambda _: region_golden("regionvit_pad_square"),
    ("authors", "dual_vit golden"): lambda _: stored("dualvit_96x128", "dual_vit/s", DUAL),
    ("authors", "dual_vit token labels golden"): lambda _: stored(
        "dualvit_tokenlabel_224", "dual_vit/s", DUAL, side=224, head="token_label"
    ),
    ("authors", "dual_vit dense golden"): dual_dense,
    ("axial_deeplab", "axial golden"): axial_golden,
}
"""(layout, which weights) -> the weights; the argument is an empty folder."""
