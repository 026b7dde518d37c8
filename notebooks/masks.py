# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Masks: a class for every pixel
#
# To open this file as a notebook: `pip install jupytext notebook`, then `jupytext --to notebook masks.py`;
# JupyterLab opens it as it is.
#
# It learns from scenes that are made of scikit-learn's scans of digits: nothing is fetched. Your own pictures lie in
# `scenes/images/` beside masks in `scenes/masks/`; then `data="scenes/"` is all that changes.

# %%
import tempfile

import numpy as np

import patchform as pf
from patchform.commands import digits

scans, dice = digits.load(), np.random.default_rng(0)
scenes = [digits.scene(scans, dice) for _ in range(360)]
pictures = [(scene.image, (scene.owners > 0).astype("uint8")) for scene in scenes]  # 0: the ground, 1: ink
learn, judge = pictures[:320], pictures[320:]
learn[0][1].mean()

# %%
settings = {"training": {"epochs": 3}, "data": {"path": (learn, judge), "classes": ["ground", "ink"]}}
run = pf.train("semantic_segmentation/digits", name="ink", runs=tempfile.mkdtemp(), page=False, **settings)
run

# %% [markdown]
# Of each class the share of what is common to truth and answer: intersection over union.

# %%
scores = pf.evaluate(run.folder, data=judge)
scores

# %%
predictor = pf.load(run.folder)
answer = predictor(judge[0][0])
answer

# %%
answer.as_json()

# %% [markdown]
# The classes of the pixels are a tensor, for whatever comes next.

# %%
mask = answer.target.classes
mask.shape, [int((mask == number).sum()) for number in (0, 1)]
