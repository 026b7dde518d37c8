# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Looking inside
#
# To open this file as a notebook: `pip install jupytext notebook`, then `jupytext --to notebook looking_inside.py`;
# JupyterLab opens it as it is.
#
# A small model learns from scans of digits that come with scikit-learn, so nothing is fetched; of a run of your own, or
# of a published model, `model = pf.load("runs/first").model` or `pf.pretrained("vit/s16.augreg_in21k_ft_in1k")` is all
# that changes.

# %%
import io
import tempfile

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

import patchform as pf
from patchform.inspect.class_attention import ClassAttention
from patchform.inspect.position_similarity import PositionSimilarity
from patchform.layers.attention import recording
from patchform.records import Batch

scans = load_digits()
pictures = [((image * 15.9).astype("uint8"), f"digit {number}") for image, number in zip(scans.images, scans.target)]
quick = {
    "model": {"options": {"depth": 2}},
    "training": {"epochs": 10, "batch_size": 32, "ema": 0.0},
    "optimizer": {"lr": 4e-3},
    "schedule": {"warmup_epochs": 0.5},
    "augmentation": {"crop_scale": [1.0, 1.0]},
}
data, place = (pictures[:1400], pictures[1400:]), tempfile.mkdtemp()
run = pf.train("classification/digits", data=data, name="inside", runs=place, page=False, **quick)
run.model

# %% [markdown]
# Where the class token looks in the last block: pictures above, maps below. Evaluation pages have this, too.

# %%
judge = pictures[1400:]
images = torch.tensor(np.stack([image for image, _ in judge]))[:, None]  # (N, 1, 8, 8) uint8, as the model takes them
model = run.model


def shown(picture, images):
    return Image.open(io.BytesIO(picture.draw(picture.measure(model, images), images)))


shown(ClassAttention(), images[:6])

# %% [markdown]
# Which places it holds for alike: a tile for each place, bright where the position embedding is similar.

# %%
shown(PositionSimilarity(), images[:1])

# %% [markdown]
# The weights of every head and block, for measures of your own: here how far a token looks, in patches, block by block
# (Dosovitskiy et al. 2021, figure 7). Outside of `recording` the fused kernel computes.


# %%
def batch(images):
    return Batch(images, (), ("",) * len(images), ((8, 8),) * len(images))


with torch.no_grad(), recording() as weights:
    features = model.features(batch(images))
places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
apart = torch.cdist(places, places)
looks = [layer[:, 0, :, 1:, 1:] for layer in weights]  # (B, heads, 16 patches, 16 patches)
[round(float((look * apart).sum(-1).mean() / look.sum(-1).mean()), 2) for look in looks]

# %% [markdown]
# The features themselves: maps, tokens and a summary, of any backbone.

# %%
{
    "map": tuple(features.maps[-1].shape),
    "tokens": tuple(features.tokens.shape),
    "summary": tuple(features.summary.shape),
}

# %% [markdown]
# Which pictures are alike to the model: the nearest neighbours of one among the others, and how often they are of one
# class.

# %%
directions = torch.nn.functional.normalize(features.summary, dim=1)
near = (directions @ directions.T).topk(6).indices  # itself first
names = np.array([name for _, name in judge])
same = (names[near[:, 1:]] == names[:, None]).mean()
f"{names[near[0, 0]]} is near {', '.join(names[near[0, 1:]])}; of all neighbours {same:.0%} are of the class"

# %%
Image.fromarray(np.concatenate([judge[index][0] for index in near[0].tolist()], axis=1)).resize((480, 80))
