# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Films: what happens
#
# To open this file as a notebook: `pip install jupytext notebook`, then `jupytext --to notebook films.py`;
# JupyterLab opens it as it is.
#
# It learns from clips that are made of scikit-learn's scans of digits: nothing is fetched. Your own videos lie in a
# folder with a folder for each class (`pip install "patchform[video]"` for mp4 and its like); then `data="clips/"` is
# all that changes.

# %%
import tempfile

import numpy as np
from PIL import Image

import patchform as pf
from patchform.commands import digits

scans, dice, motions = digits.load(), np.random.default_rng(0), ("left", "right")
clips = [(digits.motion(scans, dice, motions[n % 2])[..., None], motions[n % 2]) for n in range(280)]
learn, judge = clips[:240], clips[240:]
learn[0][0].shape  # frames, height, width, channels

# %% [markdown]
# No single frame tells where a digit goes: four of one clip.

# %%
Image.fromarray(np.concatenate(list(learn[0][0][::5, :, :, 0]), axis=1)).resize((512, 128))

# %%
settings = {
    "model": {"options": {"depth": 2}},
    "augmentation": {"crop_scale": [1.0, 1.0]},
    "training": {"epochs": 4, "batch_size": 8},
    "optimizer": {"lr": 2e-3},
}
run = pf.train(
    "video_classification/digits", data=(learn, judge), name="motion", runs=tempfile.mkdtemp(), page=False, **settings
)
run

# %%
scores = pf.evaluate(run.folder, data=judge)
scores

# %%
predictor = pf.load(run.folder)
answer = predictor(judge[0][0])
answer

# %%
answer.as_json(), judge[0][1]
