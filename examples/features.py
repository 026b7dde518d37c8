"""Maps, tokens and summary of any backbone: python examples/features.py swin/nano"""

import sys

import torch

import patchform as pf

name = sys.argv[1] if len(sys.argv) > 1 else "vit/nano"
backbone = pf.build_backbone(name).eval()
with torch.no_grad():
    features = backbone(torch.randn(1, 3, 100, 150))
for map_, stride in zip(features.maps, features.strides):
    print(f"stride {stride:3}: {tuple(map_.shape)}")
print("tokens", tuple(features.tokens.shape), "summary", tuple(features.summary.shape))
