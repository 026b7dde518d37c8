"""Weights of models that are not built here, or are another family, known by names of their tensors: a row each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


class Signature(NamedTuple):
    """A model that is called by its name."""

    name: str
    forms: tuple[tuple[str, ...], ...]
    """Expressions that are all found in names of its tensors; one of several publishers each."""
    instead: str = ""
    """What to do with them, where there is more to say than which families there are."""
    family: str = ""
    """The one that is built here; empty: none."""

    @property
    def remedy(self) -> str:
        """What to do with them."""
        if self.instead or not self.family:
            return self.instead or "use weights of a family that `patchform models` lists"
        return f'name a backbone of it: `patchform models "{self.family}/*"`'


SIGNATURES = (
    Signature(
        "SigLIP",
        ((r"(vision_model|^)\.?head\.probe$",), (r"attn_pool\.latent$", r"patch_embed\.proj\.weight$")),
        family="siglip",
    ),
    Signature(
        "CLIP",
        (
            (r"pre_layrnorm",),
            (r"visual\.transformer\.resblocks\.",),
            (r"^norm_pre\.weight$", r"^pos_embed$"),
        ),
        family="clip",
    ),
    Signature(
        "a ResNet of CLIP", ((r"visual\.attnpool\.",),), "use a vision transformer of CLIP, such as clip/b16.openai"
    ),
    Signature(
        "DINOv3",
        (
            (r"storage_tokens$",),
            (r"rope_embed\.periods$",),
            (r"register_tokens$", r"mlp\.up_proj", r"(?<!encoder\.)layer\.0\.attention\.q_proj"),
            (r"reg_token$", r"gamma_1$"),
        ),
        family="dinov3",
    ),
    Signature(
        "a tower of EVA-CLIP, whose attention has a norm inside",
        ((r"attn\.inner_attn_ln\.",), (r"blocks\.0\.attn\.norm\.", r"blocks\.0\.mlp\.fc1_g\.")),
        "use EVA-02 as it was before, such as eva02/b.mim_in22k",
    ),
    Signature("EVA-02", ((r"blocks\.0\.mlp\.fc1_g\.",), (r"mlp\.ffn_ln\.",)), family="eva02"),
    Signature(
        "BEiT",
        ((r"relative_position_bias_table$", r"attn\.q_bias$", r"cls_token$"), (r"lambda_1$", r"layernorm_before")),
        family="beit",
    ),
    Signature(
        "EVA or a small EVA-02",
        ((r"blocks\.0\.attn\.q_bias$", r"blocks\.0\.attn\.v_bias$", r"pos_embed$"),),
        "EVA-02's two smallest are eva02/ti and eva02/s; EVA is not built here",
        family="eva02",
    ),
    Signature("SAM", ((r"mask_decoder\.", r"(image|vision)_encoder\."), (r"neck\.0\.weight$", r"attn\.rel_pos_h$"))),
    Signature("DPT", ((r"neck\.reassemble_stage\.",), (r"scratch\.refinenet",), (r"reassemble_blocks\.",))),
    Signature("SegFormer", ((r"decode_head\.linear_(c|fuse)\.",), (r"sequence_reduction\.sequence_reduction\.",))),
    Signature("Mask2Former or MaskFormer", ((r"pixel_level_module\.",), (r"sem_seg_head\.",))),
    Signature(
        "ConvNeXt",
        (
            (r"stages\.0\.blocks\.0\.conv_dw\.",),
            (r"downsample_layers\.", r"\.dwconv\."),
            (r"stages\.0\.layers\.0\.dwconv",),
        ),
    ),
    Signature("YOLOS", ((r"detection_tokens$",),)),
    Signature("CaiT", ((r"blocks_token_only\.",),)),
    Signature("Hiera", ((r"pos_embed_spatial$",), (r"pos_embed_window$",))),
    Signature("EfficientNet", ((r"blocks\.0\.0\.conv_dw\.",), (r"_blocks\.0\._depthwise_conv",))),
    Signature("a YOLO of Ultralytics", ((r"model\.0\.conv\.weight$", r"model\.\d+\.cv1\.conv"),)),
    Signature("a diffusion model", ((r"down_blocks\.0\.", r"mid_block\."), (r"model\.diffusion_model\.",))),
    Signature(
        "a language model",
        ((r"layers\.0\.self_attn\.q_proj", r"embed_tokens"), (r"h\.0\.attn\.c_attn",), (r"word_embeddings\.weight$",)),
    ),
)


def known_as(names: Iterable[str]) -> Signature | None:
    """What tensors of these names are the weights of; None: nothing that is known."""
    joined = "\n".join(names)
    for signature in SIGNATURES:
        if any(all(re.search(part, joined, re.MULTILINE) for part in form) for form in signature.forms):
            return signature
    return None
