"""Layouts of ViT and its kin: from the names and shapes of the reference to its output, and back to its bytes."""

import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from reference import FOLDER, golden, randomise, rounding_of
from safetensors.torch import load_file
from torch import Tensor, nn

import patchform as pf
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.settings import Transfer

CLASSES = tuple("0123456789")


class Made(NamedTuple):
    """A reference with random weights."""

    source: dict[str, Tensor]
    images: Tensor
    expected: Tensor
    tolerance: float


def logits(model, images):
    """The output of our model."""
    features = model.backbone(images)
    return model.head.logits(model.head(features)) if hasattr(model.head, "logits") else model.head(features)


def summary(model, images):
    """What a backbone without a classifier tells of a picture."""
    return model.backbone(images).summary


class Case(NamedTuple):
    """A layout, the reference that has it, and our model of the same size."""

    layout: str
    make: Callable[[], Made]
    options: Mapping[str, Any] = {}
    """Of the family's nano row."""
    output: Callable[..., Tensor] = logits
    head: str = "linear"
    hidden: int | None = None
    """Width of the head's hidden layer."""
    parts: tuple[int, ...] = ()
    """Widths that the head classifies one by one."""
    transfer: Transfer | None = None
    dropped: str = "no_object"
    """Expression for the names that are left out."""
    row: str = "nano"
    """Of the family."""
    writes: str = ""
    """The layout that gives the source back, where names alone do not tell it from `layout`."""


# ------------------------------------------------------------------------------------------------------ references


def pictures(*shape):
    return torch.randn(2, *(shape or (3, 32, 32)), generator=torch.Generator().manual_seed(1))


class Output(nn.Module):
    """A reference, and which of its outputs is meant."""

    def __init__(self, model, of):
        super().__init__()
        self.model, self.of = model, of

    def forward(self, images):
        return self.of(self.model, images)


@torch.no_grad()
def live(model, *, state=nn.Module.state_dict, of=nn.Module.__call__, images=None):
    """Random weights for a model, and its output."""
    images = pictures() if images is None else images
    model = randomise(model.eval())
    source = {name: tensor.clone() for name, tensor in state(model).items()}
    reference = Output(model, of)
    return Made(source, images, reference(images), 10 * rounding_of(reference, images))


def tokens(model, images):
    """The patch tokens behind the last norm."""
    return model.backbone(images).tokens


def renamed(state, pairs):
    for old, new in pairs:
        state = {re.sub(old, new, name): tensor for name, tensor in state.items()}
    return state


def timm_vit(**options):
    timm = pytest.importorskip("timm")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return timm.models.VisionTransformer(**{**size, **options})


def class_token(model, images):
    return model.forward_features(images)[:, 0]


def mae():
    """The backbone is timm's; the tensors beside it and all names are of the authors' file."""
    parameters = golden("mae")[2]

    def state(model):
        own = model.state_dict()
        beside = {name: tensor for name, tensor in parameters.items() if name not in own}
        assert {name for name in parameters if name in own} == own.keys()
        return own | beside

    return live(timm_vit(embed_dim=24, num_classes=0), state=state, of=class_token)


def dinov2(chunk=0, **options):
    """As timm has it without chunks; its table has rows for the registers, which are part of those tokens."""

    def state(model):
        own = dict(model.state_dict())
        table = own["pos_embed"]
        own["register_tokens"] = own.pop("reg_token") + table[:, 1:3]
        own["pos_embed"] = torch.cat([table[:, :1], table[:, 3:]], 1)
        own["mask_token"] = torch.ones(1, 48)
        return renamed(own, [(r"^blocks\.(\d+)", lambda b: f"blocks.{int(b[1]) // chunk}.{b[1]}")]) if chunk else own

    model = timm_vit(num_classes=0, init_values=0.1, reg_tokens=2, no_embed_class=False, **options)
    return live(model, state=state, of=class_token)


def swiglu_vit(**options):
    """timm's, which has another activation unless it is told."""
    packed = pytest.importorskip("timm.layers").SwiGLUPacked
    return timm_vit(init_values=0.1, mlp_layer=packed, mlp_ratio=2 * 2.66667, act_layer=nn.SiLU, **options)


def authors_swiglu():
    """The ViT-g of DINOv2 by its authors' names."""

    def state(model):
        own = {**model.state_dict(), "mask_token": torch.ones(1, 48)}
        return renamed(own, [("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")])

    return live(swiglu_vit(num_classes=0), state=state, of=class_token)


def distilled_deit():
    deit = pytest.importorskip("timm.models.deit")
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    return live(deit.VisionTransformerDistilled(**size))


MM = (
    (r"^blocks\.(\d+)\.norm", r"layers.\1.ln"),
    (r"^blocks\.(\d+)\.mlp\.fc1", r"layers.\1.ffn.layers.0.0"),
    (r"^blocks\.(\d+)\.mlp\.fc2", r"layers.\1.ffn.layers.1"),
    (r"^blocks\.(\d+)\.ls1\.gamma", r"layers.\1.attn.gamma1.weight"),
    (r"^blocks\.(\d+)\.ls2\.gamma", r"layers.\1.ffn.gamma2.weight"),
    (r"^blocks\.", "layers."),
    (r"^norm\.", "ln1."),
    (r"^patch_embed\.proj", "patch_embed.projection"),
)
MM_WHOLE = ((r"^(?!head)", "backbone."), (r"^head\.", "head.layers.head."))
MMSEG = (*MM, (r"attn\.qkv\.", "attn.attn.in_proj_"), (r"attn\.proj", "attn.attn.out_proj"))


def as_mm(*pairs):
    return lambda model: renamed(model.state_dict(), pairs)


# ----------------------------------------------------------------------------------------------------- transformers

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
VIT = {**SMALL, "intermediate_size": 192, "layer_norm_eps": 1e-6}


def in_files(model):
    """Its tensors by the names that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(f"{folder}/model.safetensors")


def hugging(family, kind, config, *, state=in_files, of=None, images=None, **options):
    module = pytest.importorskip(f"transformers.models.{family}")
    model = getattr(module, kind)(getattr(module, config)(**options))
    return live(model, state=state, of=of or (lambda model, images: model(images).logits), images=images)


def first(model, images):
    return model(images).last_hidden_state[:, 0]


def below(name):
    return lambda model, images: first(getattr(model, name), images)


def vit_mae(state):
    def unmasked(model, images):
        return model.vit(images, noise=torch.arange(16).expand(2, -1)).last_hidden_state[:, 0]

    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    size = {**VIT, **decoder, "decoder_intermediate_size": 16, "mask_ratio": 0.0}
    return hugging("vit_mae", "ViTMAEForPreTraining", "ViTMAEConfig", state=state, of=unmasked, **size)


def vit_hybrid():
    """transformers' Bit below its ViT, which sees a map of 256 channels: what its ViTHybrid was."""
    vit, bit = (pytest.importorskip(f"transformers.models.{name}") for name in ("vit", "bit"))
    local = bit.BitBackbone(
        bit.BitConfig(
            embedding_size=32, hidden_sizes=[128, 256], depths=[1, 2], layer_type="bottleneck", global_padding="same",
            embedding_dynamic_padding=True, out_features=["stage2"],
        )
    )  # fmt: skip
    above = vit.ViTForImageClassification(
        vit.ViTConfig(**{**VIT, "image_size": 8, "patch_size": 1}, num_channels=256, num_labels=10)
    )

    def state(model):
        with torch.no_grad():
            for module in model[0].modules():  # constants of the original, as in tests/backbones/test_hybrid.py
                if isinstance(module, nn.GroupNorm):
                    module.eps = 1e-6
                if type(module).__name__ == "WeightStandardizedConv2d":
                    module.weight *= 1e3
        lower = {f"vit.embeddings.patch_embeddings.backbone.{name}": t for name, t in model[0].state_dict().items()}
        return lower | in_files(model[1])

    def both(model, images):
        return model[1](model[0](images).feature_maps[0]).logits

    return live(nn.ModuleList([local, above]), state=state, of=both, images=pictures(3, 64, 64))


# ------------------------------------------------------------------------------------------------- timm and torchvision


def torchvision_vit(**options):
    models = pytest.importorskip("torchvision.models")
    size = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 48, "mlp_dim": 192}
    return live(models.VisionTransformer(**size, num_classes=10, **options))


def resnet(home, block, **options):
    module = pytest.importorskip(f"{home}.models.resnet")
    return live(module.ResNet(getattr(module, block), [1, 2, 1, 1], num_classes=10), **options)


def timm_by_name(name, size=(32, 32), *, state=nn.Module.state_dict, **options):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, img_size=size, num_classes=10, **options)
    return live(model, state=state, images=pictures(3, *size))


def timm_cross_vit(multi_conv):
    timm = pytest.importorskip("timm")
    model = timm.models.crossvit.CrossVit(
        img_size=120, img_scale=(1.0, 112 / 120), patch_size=(12, 16), num_classes=10, embed_dim=(24, 48),
        depth=((1, 2, 0), (1, 3, 0)), num_heads=(3, 3), mlp_ratio=(3, 3, 1), multi_conv=multi_conv,
    )  # fmt: skip
    return live(model, images=pictures(3, 120, 120))


def timm_volo():
    timm = pytest.importorskip("timm")
    model = timm.models.volo.VOLO(
        layers=[2, 1, 2, 1], img_size=64, num_classes=10, stem_hidden_dim=8, embed_dims=[12, 24, 24, 24],
        num_heads=[2, 4, 4, 4],
    )  # fmt: skip
    return live(model, images=pictures(3, 64, 64))


def hybrid_by_name(name, **options):
    """timm's, with the two small constants of the original (tests/backbones/test_hybrid.py)."""
    timm = pytest.importorskip("timm")
    size = {"img_size": 64, "num_classes": 10, "depth": 2, "embed_dim": 48, "num_heads": 3}

    def state(model):
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.GroupNorm):
                    module.eps = 1e-6
                if type(module).__name__ == "StdConv2dSame":
                    module.weight *= 1e3
        return model.state_dict()

    return live(timm.create_model(name, **size, **options), state=state, images=pictures(3, 64, 64))


# ---------------------------------------------------------------------------------------------------- authors' vectors


def vector(name, *, front="", channels_last=False):
    """What the authors' code gave. Where the size of its rounding is not on record, 1e-5 of the largest output."""
    _, tensors, parameters, rounding = golden(name)
    images = tensors["input"].permute(0, 3, 1, 2) if channels_last else tensors["input"]
    tolerance = 10 * rounding["output"] if rounding else 1e-5 * tensors["output"].abs().max().item()
    source = {front + key: tensor for key, tensor in parameters.items()}
    for key in [key for key in source if re.search("/gn|gn_root", key)]:
        source[key] = source[key].view(1, 1, 1, -1)  # as the .npz files have them
    return Made(source, images, tensors["output"], tolerance)


# ---------------------------------------------------------------------------------------------------------------- table

SCALED, TOKENS = {"layer_scale": 1.0}, {"layer_scale": 1.0, "registers": 2}
GATED, BOTH, TWIN = {"mlp": "swiglu"}, {"summary": "class_and_mean"}, {"class_tokens": 2}
MEAN = {"summary": "mean_then_norm"}
FOURTEEN = {"layer_scale": 1.0, "patch": 14, "image_size": 56}
PLACED = {"writes": "timm_no_embed_class"}
LARGE = {"patch": 16, "image_size": 64}
AUTHORS = {"width": 24, "depth": 2, "heads": 4, "mlp_ratio": 2, "gelu": "tanh"}
TRUNK = {"output": summary}
NEW = Transfer(head="reinit")
MASKED = {**TRUNK, "dropped": "(.*[.])?mask_token|decoder.*|classifier.*"}


def hugging_vit(kind, state, of=None, **options):
    return hugging("vit", kind, "ViTConfig", state=state, of=of, **VIT, **options)


def hugging_dinov2(state, kind, registers):
    family, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    of = first if kind == "Model" else below(family)
    options = {"num_register_tokens": 2} if registers else {}
    return hugging(family, name + kind, f"{name}Config", state=state, of=of, **SMALL, **options)


def hugging_deit(state, kind):
    def both(model, images):
        hidden = getattr(model, "deit", model)(images).last_hidden_state
        return hidden[:, :2].flatten(1)

    options = {"num_labels": 10} if "Image" in kind else {}
    of = None if kind.endswith("Teacher") else both
    return hugging("deit", kind, "DeiTConfig", state=state, of=of, **VIT, **options)


def hugging_gated(state, registers):
    family, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    options = {"num_register_tokens": 2} if registers else {}
    return hugging(
        family, f"{name}Model", f"{name}Config", state=state, of=first, **SMALL, **options, use_swiglu_ffn=True
    )


def hugging_dinov2_whole(state, registers):
    family, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    options = {"num_register_tokens": 2} if registers else {}
    return hugging(
        family, f"{name}ForImageClassification", f"{name}Config", state=state, **SMALL, **options, num_labels=10
    )


def transformers_cases(version, state):
    """The same models by the names of files and by those of memory."""
    name, kind = f"transformers{version}", "ForImageClassification"
    return (
        Case(name, lambda: hugging_vit(f"ViT{kind}", state, num_labels=10)),
        Case(name, lambda: hugging_vit("ViTForMaskedImageModeling", state, below("vit"), encoder_stride=8), **MASKED),
        Case(name, lambda: vit_mae(state), **MASKED),
        Case(f"{name}_backbone", lambda: hugging_vit("ViTModel", state, first), **TRUNK, dropped="pooler.*"),
        Case(f"{name}_dinov2", lambda: hugging_dinov2(state, kind, False), SCALED, **MASKED, transfer=NEW),
        Case(f"{name}_dinov2_backbone", lambda: hugging_dinov2(state, "Model", False), SCALED, **MASKED),
        Case(f"{name}_dinov2_registers", lambda: hugging_dinov2(state, kind, True), TOKENS, **MASKED, transfer=NEW),
        Case(f"{name}_dinov2_backbone", lambda: hugging_dinov2(state, "Model", True), TOKENS, **MASKED),
        Case(f"{name}_dinov2", lambda: hugging_dinov2_whole(state, False), SCALED | BOTH, dropped=".*mask_token"),
        Case(
            f"{name}_dinov2_registers", lambda: hugging_dinov2_whole(state, True), TOKENS | BOTH, dropped=".*mask_token"
        ),
        Case(f"{name}_dinov2_swiglu_backbone", lambda: hugging_gated(state, False), SCALED | GATED, **MASKED),
        Case(f"{name}_dinov2_swiglu_backbone", lambda: hugging_gated(state, True), TOKENS | GATED, **MASKED),
        Case(f"{name}_distilled", lambda: hugging_deit(state, f"DeiT{kind}WithTeacher"), TWIN, parts=(48, 48)),
        Case(f"{name}_distilled", lambda: hugging_deit(state, f"DeiT{kind}"), TWIN, **MASKED, transfer=NEW),
        Case(
            f"{name}_distilled_backbone",
            lambda: hugging_deit(state, "DeiTModel"),
            TWIN,
            output=summary,
            dropped="pooler.*",
        ),
    )


def google_case(name, hidden=None, **options):
    return Case("google", lambda: vector(name, channels_last=True), AUTHORS | options, hidden=hidden)


def hybrid_case(layout, make, **options):
    return Case(layout, make, {"image_size": 64, "stages": (1, 2), "gelu": "none"} | options)


def hugging_resnet(kind, layer, of=None):
    size = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 1, 1], "num_labels": 10}
    size["embedding_size"] = 32 if layer == "basic" else 8
    return hugging("resnet", kind, "ResNetConfig", of=of, **size, layer_type=layer)


def hugging_times(kind, of=None, **options):
    size = {**VIT, "num_frames": 3, "num_labels": 10, **options}
    return hugging("timesformer", kind, "TimesformerConfig", of=of, images=pictures(3, 3, 32, 32), **size)


def pooled(model, images):
    return model(images).pooler_output.flatten(1)


def deit3(name, **options):
    return timm_by_name(name, (64, 64), no_embed_class=True, depth=2, embed_dim=48, num_heads=3, **options)


def dinov2_by_name(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, img_size=56, depth=2, embed_dim=48, num_heads=3)
    return live(model, of=class_token, images=pictures(3, 56, 56))


def all_cells(model, images):
    return model(images)[:, 1:]


def vector_of_clips(name):
    made = vector(name, front="model.")
    return made._replace(images=made.images.transpose(1, 2))


def vector_of_boxes(name):
    made = vector(name)
    return made._replace(images=made.images.permute(0, 1, 4, 2, 3))


def hugging_boxes(kind, state, of=None):
    size = {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8], "num_labels": 10}
    del size["patch_size"]
    return hugging("vivit", kind, "VivitConfig", state=state, of=of, images=pictures(4, 3, 32, 32), **size)


def fused_parnet():
    path = FOLDER / "golden" / "parnet_fused_params.safetensors"
    if not path.exists():
        pytest.skip("no fused weights (set PATCHFORM_REFERENCE)")
    made = vector("parnet")
    return made._replace(source=load_file(path), tolerance=1e-5 * made.expected.abs().max().item())


def bottlenecks():
    """The vector is of the last stage alone; the names below it are those of torchvision's ResNet."""
    resnet = pytest.importorskip("torchvision.models.resnet")
    below = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], num_classes=10).state_dict()
    made = vector("botnet_gist", front="layer4.")
    small = pf.build_model(
        "classification", backbone="botnet/nano", head="linear", classes=CLASSES, backbone_options=BOTTLE
    )
    lower = export_weights(randomise(small), "lucidrains")
    lower = {name: tensor for name, tensor in lower.items() if "layer4" not in name}
    assert lower.keys() == {name for name in below if "layer4" not in name}
    return made._replace(source=lower | made.source)


def last_stage(model, images):
    for block in model.backbone.blocks:
        images = block(images)
    return images


BASIC = {"block": "basic", "depths": (1, 2, 1, 1), "widths": (64, 128, 256, 512)}
BOTTLENECK = BASIC | {"block": "bottleneck"}
HUGGING_BASIC = BASIC | {"widths": (32, 64, 96, 128)}
HUGGING_RESNET = BOTTLENECK | {"widths": (8, 16, 24, 32)}
MM_RESNET = ((r"^(?!fc)", "backbone."), (r"^fc\.", "head.fc."))
WIDE_TIMES = {"width": 48, "mlp_ratio": 4.0}
JOINT, SPACE = {"row": "nano_joint"}, {"row": "nano_space"}
BOTTLE = {"image_size": (96, 128), "depths": (1, 1, 1, 3), "widths": (4, 4, 4, 8), "stem": "imagenet"}
CROSS = {"widths": (24, 48), "depths": ((1, 2), (1, 3)), "heads": 3, "mlp_ratio": 3.0, "patches": (12, 16)}
WIDER = CROSS | {"image_size": 120, "scales": (1, 112 / 120)}
SMALLER = CROSS | {"image_size": 64, "scales": (60 / 64, 1)}
VOLO = {"image_size": 64, "depths": (2, 1, 2, 1), "heads": (2, 4), "class_depth": 2}
ONE, TWO = ({"stem": "linear", "image_size": 64, "branches": branches} for branches in (1, 2))
VECTOR = {"width": 24, "image_size": 32}
MM_ALL = (*MM, *MM_WHOLE)

CASES = {
    "vit": (
        Case("timm", lambda: live(timm_vit())),
        Case("timm", lambda: live(timm_vit(init_values=0.1)), SCALED),
        Case("timm", lambda: live(timm_vit(global_pool="avg", class_token=False, fc_norm=False)), {"summary": "mean"}),
        Case("timm", lambda: live(timm_vit(global_pool="avg", fc_norm=False)), {"summary": "mean", "class_tokens": 1}),
        Case("timm", lambda: live(timm_vit(global_pool="avg")), MEAN | {"class_tokens": 1}),
        Case("timm", lambda: live(timm_vit(global_pool="avg", class_token=False)), MEAN),
        Case("timm", lambda: live(timm_vit(global_pool="map", class_token=False)), {"summary": "attention"}),
        Case("timm", lambda: live(timm_vit(global_pool="map")), {"summary": "attention", "class_tokens": 1}),
        Case("timm", lambda: live(timm_vit(global_pool="", num_classes=0), of=all_cells), output=tokens),
        Case("timm", lambda: live(timm_vit(no_embed_class=True)), **PLACED),
        Case("timm", lambda: live(timm_vit(no_embed_class=True, reg_tokens=2)), {"registers": 2}, **PLACED),
        Case(
            "timm",
            lambda: live(
                timm_vit(no_embed_class=True, reg_tokens=2, class_token=False, global_pool="avg", fc_norm=False)
            ),
            {"registers": 2, "summary": "mean"},
        ),
        Case("timm", lambda: deit3("deit3_small_patch16_224"), SCALED | LARGE, **PLACED),
        Case("timm", lambda: deit3("flexivit_small"), LARGE, **PLACED),
        Case("timm", lambda: live(swiglu_vit()), SCALED | GATED),
        Case("timm", lambda: dinov2_by_name("vit_small_patch14_dinov2"), FOURTEEN, **TRUNK),
        Case(
            "timm",
            lambda: dinov2_by_name("vit_small_patch14_reg4_dinov2"),
            FOURTEEN | {"registers": 4},
            **TRUNK,
            **PLACED,
        ),
        Case("timm", lambda: dinov2_by_name("vit_giant_patch14_dinov2"), FOURTEEN | GATED, **TRUNK),
        Case("timm_distilled", distilled_deit, TWIN, parts=(48, 48)),
        Case("torchvision", torchvision_vit),
        Case("torchvision", lambda: torchvision_vit(representation_size=20), hidden=20),
        *transformers_cases("", in_files),
        *transformers_cases("_5", nn.Module.state_dict),
        google_case("google_vit_token"),
        google_case("google_vit_prelogits", hidden=20),
        google_case("google_vit_gap", summary="mean"),
        Case("mae", mae, {"width": 24}, **MASKED),
        Case("dinov2", dinov2, TOKENS, **MASKED),
        Case("dinov2_swiglu", authors_swiglu, SCALED | GATED, **MASKED),
        Case("dinov2_4x3", lambda: dinov2(3, depth=12), {**TOKENS, "depth": 12}, **MASKED),
        Case("dinov2_4x6", lambda: dinov2(6, depth=24), {**TOKENS, "depth": 24}, **MASKED),
        Case("mm", lambda: live(timm_vit(init_values=0.1), state=as_mm(*MM_ALL)), SCALED),
        Case("mm_backbone", lambda: live(timm_vit(num_classes=0), state=as_mm(*MM), of=class_token), **TRUNK),
        Case("mmseg", lambda: live(timm_vit(num_classes=0), state=as_mm(*MMSEG), of=class_token), **TRUNK),
    ),
    "hybrid": (
        hybrid_case("timm", lambda: hybrid_by_name("vit_small_r26_s32_224"), stages=(2, 2, 2, 2), local_width=64),
        hybrid_case("timm_stem", lambda: hybrid_by_name("vit_tiny_r_s16_p8_224"), stages=(), local_width=64, patch=8),
        hybrid_case("transformers", vit_hybrid),
        hybrid_case("google", lambda: vector("google_vit_hybrid", channels_last=True), **AUTHORS, stages=(2, 1)),
        hybrid_case("google", lambda: vector("google_vit_r_stem", channels_last=True), **AUTHORS, stages=(), patch=8),
    ),
    "resnet": (
        Case("torchvision", lambda: resnet("torchvision", "BasicBlock"), BASIC),
        Case("torchvision", lambda: resnet("torchvision", "Bottleneck"), BOTTLENECK),
        Case("torchvision", lambda: resnet("timm", "Bottleneck"), BOTTLENECK),
        Case("transformers", lambda: hugging_resnet("ResNetForImageClassification", "bottleneck"), HUGGING_RESNET),
        Case("transformers", lambda: hugging_resnet("ResNetForImageClassification", "basic"), HUGGING_BASIC),
        Case("transformers_backbone", lambda: hugging_resnet("ResNetModel", "basic", pooled), HUGGING_BASIC, **TRUNK),
        Case("mm", lambda: resnet("torchvision", "BasicBlock", state=as_mm(*MM_RESNET)), BASIC),
    ),
    "parallel_vit": (
        Case("timm", lambda: deit3("deit3_small_patch16_224"), ONE),
        Case("timm_parallel", lambda: deit3("vit_small_patch16_18x2_224"), TWO),
        Case("mm", lambda: deit3("deit3_small_patch16_224", state=as_mm(*MM_ALL)), ONE),
        Case("deit", lambda: vector("parallel_vit"), TWO | VECTOR | {"layer_scale": None}),
        Case("deit", lambda: vector("parallel_vit_ls"), TWO | VECTOR),
        Case("deit", lambda: vector("deit3_hmlp"), ONE | VECTOR | {"stem": "hmlp"}),
    ),
    "cross_vit": (
        Case("timm", lambda: timm_cross_vit(False), WIDER),
        Case("timm", lambda: timm_cross_vit(True), {**WIDER, "stem": "convolutions"}),
        Case("ibm", lambda: vector("crossvit"), SMALLER),
        Case("ibm", lambda: vector("crossvit_dagger"), {**SMALLER, "stem": "convolutions"}),
        Case("timm_parts", lambda: timm_cross_vit(True), {**WIDER, "stem": "convolutions"}, parts=WIDER["widths"]),
        Case("ibm_parts", lambda: vector("crossvit"), SMALLER, parts=SMALLER["widths"]),
    ),
    "volo": (
        Case("sail", timm_volo, VOLO, head="token_label"),
        Case("sail", lambda: vector("volo"), VOLO, head="token_label"),
    ),
    "timesformer": (
        Case("facebook", lambda: vector_of_clips("timesformer_divided"), {"mlp_ratio": 4.0}),
        Case("facebook", lambda: vector_of_clips("timesformer_joint"), {"mlp_ratio": 4.0}, **JOINT),
        Case("facebook", lambda: vector_of_clips("timesformer_space"), {"mlp_ratio": 4.0}, **SPACE),
        Case("transformers", lambda: hugging_times("TimesformerForVideoClassification"), WIDE_TIMES),
        Case(
            "transformers",
            lambda: hugging_times("TimesformerForVideoClassification", attention_type="joint_space_time"),
            WIDE_TIMES,
            **JOINT,
        ),
        Case("transformers_backbone", lambda: hugging_times("TimesformerModel", first), WIDE_TIMES, **TRUNK),
    ),
    "vivit": (
        *(
            case
            for version, state in (("", in_files), ("_5", nn.Module.state_dict))
            for case in (
                Case(
                    f"transformers{version}",
                    lambda state=state: hugging_boxes("VivitForVideoClassification", state),
                    WIDE_TIMES,
                ),
                Case(
                    f"transformers{version}_backbone",
                    lambda state=state: hugging_boxes("VivitModel", state, first),
                    WIDE_TIMES,
                    **TRUNK,
                    dropped="pooler.*",
                ),
            )
        ),
        Case("scenic", lambda: vector_of_boxes("vivit_spacetime"), {"heads": 4}),
        Case("scenic", lambda: vector_of_boxes("vivit_factorized_dot_product"), row="nano_fdp"),
        Case("scenic_fe", lambda: vector_of_boxes("vivit_factorized_encoder"), {"heads": 4}, row="nano_fe"),
        Case("scenic_fsa", lambda: vector_of_boxes("vivit_factorized_self_attention"), {"heads": 4}, row="nano_fsa"),
    ),
    "parnet": (
        Case("authors", lambda: vector("parnet"), {"widths": (8, 16, 24, 40)}),
        Case("authors", fused_parnet, {"widths": (8, 16, 24, 40), "fused": True}),
    ),
    "botnet": (Case("lucidrains", bottlenecks, BOTTLE, output=last_stage),),
}

ALL = [pytest.param(family, case, id=f"{family}-{case.layout}") for family, cases in CASES.items() for case in cases]


def ours(family, case):
    """Our model of a case, with other random weights."""
    model = pf.build_model(
        "classification",
        backbone=f"{family}/{case.row}",
        head=case.head,
        classes=CLASSES,
        backbone_options=dict(case.options),
        head_options={"hidden": case.hidden, "parts": case.parts} if case.head == "linear" else {},
    )
    return randomise(model, seed=9).eval()


@torch.no_grad()
def difference(family, case, made, source):
    """(model, report, largest difference to the reference over what is allowed)."""
    model = ours(family, case)
    report = pf.load_weights(model, source, transfer=case.transfer)
    found = case.output(model, made.images)
    assert found.shape == made.expected.shape
    return model, report, ((found - made.expected).abs().max() / made.tolerance).item()


def same_bytes(one, other):
    return one.shape == other.shape and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


@pytest.mark.parametrize(("family", "case"), ALL)
def test_recognised_equal_and_written_back(family, case):
    made = case.make()
    model, report, error = difference(family, case, made, made.source)
    assert report.layout == case.layout
    assert error <= 1
    dropped = {entry.name for entry in report.dropped}
    assert dropped == {name for name in made.source if re.fullmatch(case.dropped, name)}
    written = export_weights(model, case.writes or case.layout)
    kept = {name: tensor for name, tensor in made.source.items() if name not in dropped}
    assert written.keys() >= kept.keys()
    assert len(written) - len(kept) == len(report.of("new"))  # a classifier that the source has not
    different = [name for name in kept if not same_bytes(written[name], kept[name])]
    joined = family == "cross_vit" and not case.parts  # two layers became one: the same function, another bias
    assert different == (["head.0.bias", "head.1.bias"] if joined else [])


@pytest.mark.parametrize("registers", [0, 2])
@torch.no_grad()
def test_dinov2_resizes_its_positions_as_transformers_does(registers):
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    module = pytest.importorskip(f"transformers.models.{'dinov2_with_registers' if registers else 'dinov2'}")
    more = {"num_register_tokens": registers} if registers else {}
    theirs = randomise(getattr(module, f"{name}Model")(getattr(module, f"{name}Config")(**SMALL, **more)).eval())
    options = SCALED | {"registers": registers} if registers else SCALED
    own, other = (
        pf.build_backbone("vit/nano", **options, position=position).eval()
        for position in ("learned_1d_antialiased", "learned_1d")[:: 1 if registers else -1]
    )
    for backbone in (own, other):
        pf.load_weights(backbone, theirs.state_dict())
    for size in ((32, 32), (16, 16), (24, 40), (56, 8)):
        images = pictures(3, *size)
        expected, allowed = first(theirs, images), 10 * rounding_of(Output(theirs, first), images)
        assert (own(images).summary - expected).abs().max() <= allowed
        if size != (32, 32):
            assert (other(images).summary - expected).abs().max() > 100 * allowed  # control


@pytest.mark.parametrize("family", CASES)
def test_control_swapped_tensors_are_seen(family):
    case = CASES[family][0]
    made = case.make()
    scales = [name for name, tensor in made.source.items() if tensor.dim() == 1 and name.endswith("weight")]
    one, other = next(
        (one, other)
        for one in reversed(scales)
        for other in scales
        if one > other and made.source[one].shape == made.source[other].shape
    )
    spoilt = made.source | {one: made.source[other], other: made.source[one]}
    assert difference(family, case, made, spoilt)[2] > 100


# --------------------------------------------------------------------------------------------- wholes, and the refused


def test_the_backbone_of_dino_is_taken_out_of_student_and_teacher():
    made = live(timm_vit(num_classes=0), of=class_token)
    whole = {f"module.backbone.{name}": tensor for name, tensor in made.source.items()}
    whole |= {"module.head.mlp.0.weight": torch.zeros(4, 48), "module.head.last_layer.weight_g": torch.ones(4, 1)}
    model = ours("vit", Case("timm", timm_vit))
    report = pf.load_weights(model, whole, prefix="module.backbone.")
    assert report.layout == "timm"
    assert {entry.name for entry in report.dropped} == {name for name in whole if ".head." in name}
    with torch.no_grad():
        assert (summary(model, made.images) - made.expected).abs().max() <= made.tolerance
    other = ours("vit", Case("timm", timm_vit))
    report = pf.load_weights(other, whole)
    assert (report.layout, report.prefix) == ("dino", "module.")
    assert all(torch.equal(tensor, other.backbone.state_dict()[n]) for n, tensor in model.backbone.state_dict().items())
    with pytest.raises(ModelFileError, match=r"names begin with module\.backbone\."):
        pf.load_weights(model, {**whole, "module.neck.weight": torch.zeros(4)})


@pytest.mark.parametrize("front", ["backbone.0.body.", "backbone."])
def test_the_resnet_of_a_detector_is_taken_out_and_its_frozen_norms_do_not_count(front):
    made = resnet("torchvision", "BasicBlock")
    weights = {name: t for name, t in made.source.items() if not name.endswith("num_batches_tracked")}
    whole = {front + name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    whole |= {"transformer.encoder.norm.weight": torch.ones(8), "class_embed.weight": torch.ones(9, 8)}
    model = ours("resnet", CASES["resnet"][0])
    report = pf.load_weights(model, whole, prefix=front)
    assert {entry.name for entry in report.dropped} == {"transformer.encoder.norm.weight", "class_embed.weight"}
    fresh = {entry.name for entry in report.of("new") if not entry.name.startswith("head.")}
    assert fresh == {f"backbone.{name}" for name in model.backbone.state_dict() if name.endswith("num_batches_tracked")}
    with torch.no_grad():
        model.head.classifier.weight.copy_(made.source["fc.weight"])
        model.head.classifier.bias.copy_(made.source["fc.bias"])
        assert (logits(model, made.images) - made.expected).abs().max() <= made.tolerance
    whole.pop(front + "bn1.weight")
    with pytest.raises(ModelFileError, match=r"the source has no bn1.weight"):
        pf.load_weights(model, whole, prefix=front)


def mmseg_without_norm():
    state = timm_vit(num_classes=0).state_dict()
    return renamed({name: t for name, t in state.items() if not name.startswith("norm.")}, MMSEG)


def deep_stem():
    timm = pytest.importorskip("timm")
    return timm.create_model("resnet18d", num_classes=10).state_dict()


@pytest.mark.parametrize(
    ("family", "source", "options", "said"),
    [
        (
            "vit",
            lambda: timm_vit(reg_tokens=2, no_embed_class=False).state_dict(),
            {"registers": 2},
            "pos_embed .* 18 cells behind 1 are no square, 3 in front of 4 x 4 cells would fit: rows of registers",
        ),
        ("vit", lambda: hugging_dinov2(in_files, "ForImageClassification", False).source, SCALED, "classifier.weight"),
        ("vit", mmseg_without_norm, {}, "backbone.norm.weight is not filled: the source has no ln1.weight"),
        ("resnet", deep_stem, {"block": "basic", "depths": (2,) * 4, "widths": (64, 128, 256, 512)}, "no rule for"),
        (
            "parallel_vit",
            lambda: timm_vit().state_dict(),
            {**ONE, "patch": 8, "image_size": 32, "layer_scale": None},
            "pos_embed",
        ),
    ],
)
def test_what_ours_does_not_compute_is_refused(family, source, options, said):
    model = ours(family, Case("", source, options))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelFileError, match=said):
        pf.load_weights(model, source())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
