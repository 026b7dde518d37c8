# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Boxes: which objects are where
#
# To open this file as a notebook: `pip install jupytext notebook`, then `jupytext --to notebook boxes.py`;
# JupyterLab opens it as it is.
#
# It learns from scenes that are made of scikit-learn's scans of digits: nothing is fetched. Your own annotations may be
# COCO json, Pascal VOC or YOLO files as they are; then `data="cells/"` is all that changes.

# %%
import tempfile

import numpy as np

import patchform as pf
from patchform.commands import digits

scans, dice = digits.load(), np.random.default_rng(0)


def annotated(scene):
    boxes = []
    for owner in range(1, 1 + len(scene.classes)):
        rows, columns = np.nonzero(scene.owners == owner)
        corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1  # left, top, right, bottom
        boxes.append([int(corner) for corner in corners])
    return scene.image, {"boxes": boxes, "labels": ["digit"] * len(boxes)}


pictures = [annotated(digits.scene(scans, dice)) for _ in range(224)]
learn, judge = pictures[:200], pictures[200:]
learn[0][1]

# %%
settings = {"training": {"epochs": 3, "batch_size": 8}, "optimizer": {"lr": 2e-3}}
run = pf.train("detection/digits", data=(learn, judge), name="boxes", runs=tempfile.mkdtemp(), page=False, **settings)
run

# %% [markdown]
# COCO's average precision, and that of boxes that overlap the truth by half.

# %%
scores = pf.evaluate(run.folder, data=judge)
scores

# %% [markdown]
# What is drawn is what is surer than the threshold of its class, which training has chosen and the model keeps.

# %%
predictor = pf.load(run.folder)
answer = predictor(judge[0][0])
answer

# %%
answer.as_json()["objects"][:3]
