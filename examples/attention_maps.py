"""Where a model looks, with the fused kernel everywhere else: record the attention weights of one forward pass."""

import torch

import patchform as pf
from patchform.layers.attention import recording

backbone = pf.build_backbone("vit/nano").eval()
with torch.no_grad(), recording() as weights:
    backbone(torch.randn(1, 3, 32, 32))
for number, layer in enumerate(weights, start=1):
    of_class_token = layer[0, 0, :, 0, 1:].mean(0)  # (B, G, heads, queries, keys)
    print(f"block {number}: the class token looks most at patch {int(of_class_token.argmax())}")
