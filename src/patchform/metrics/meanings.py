"""What the numbers of an evaluation mean, a line each: one place for the page, the notebook and the command line."""

from __future__ import annotations

MEANINGS = {
    "images": "how many pictures were judged",
    "skipped": "pictures that could not be read and were left out",
    "train_loss": "what is minimised, over the training pictures as they are learnt from: augmented, mixed, smoothed",
    "val_loss": "the loss of validation pictures, as they are; it rises where a model learns its own by heart",
    "lr": "how far a step moves the weights",
    "top1": "share of the pictures whose class is the first guess (accuracy)",
    "top5": "share of the pictures whose class is among the first five guesses",
    "mean_class_accuracy": "mean of the classes' own accuracies, so that rare classes count as much as frequent ones",
    "log_loss": "mean of -log of the probability that the true class was given: 0 is best, log(classes) is a guess",
    "ece": "expected calibration error: how far a score is from the share that is right at that score; 0 is best",
    "temperature": "what to divide the logits by to calibrate them best: above 1 the model is too sure",
    "ece_after": "the calibration error after that division",
    "map": "mean over the classes of the average precision of the ranking by score; 1 is best",
    "exact": "share of the pictures whose classes are all and only the true ones",
    "ap": "average precision as COCO has it: mean over the classes and over overlaps (IoU) of 0.50 to 0.95",
    "ap50": "average precision where an object counts as found at an overlap (IoU) of 0.50",
    "ap75": "average precision where an object counts as found at an overlap (IoU) of 0.75",
    "ap_small": "average precision of objects below 32 x 32 pixels",
    "ap_medium": "average precision of objects of 32 x 32 to 96 x 96 pixels",
    "ap_large": "average precision of objects above 96 x 96 pixels",
    "ar_1": "recall, the share of objects found, with the one best answer a picture; mean over overlaps 0.50 to 0.95",
    "ar_10": "recall with the ten best answers a picture",
    "ar_100": "recall with the hundred best answers a picture",
    "ar_small": "recall of objects below 32 x 32 pixels",
    "ar_medium": "recall of objects of 32 x 32 to 96 x 96 pixels",
    "ar_large": "recall of objects above 96 x 96 pixels",
    "f1": "2 right / (predicted + true), at the threshold of each class: 1 if nothing is missed and nothing is wrong",
    "mean_iou": "mean over the classes of IoU, intersection over union: pixels that both have / pixels that either has",
    "pixel_accuracy": "share of the pixels whose class is right; large areas count most",
    "class_accuracy": "mean over the classes of the share of their pixels that is right",
    "frequency_iou": "IoU, each class weighed by its pixels",
    "boundary_iou": "IoU of the parts that are near an edge: how sharp the outlines are",
    "knn": "share of the pictures whose nearest neighbours are mostly of their class",
    "effective_rank": "how many dimensions the embeddings fill",
    "spread": "how far the embeddings lie apart: 0 where all are alike, 1 where they point anywhere",
    # columns of tables
    "accuracy": "share of the class that is right",
    "predicted": "how often the class was predicted",
    "average_precision": "precision, averaged over the ranking by score",
    "iou": "pixels that both truth and prediction have / pixels that either has",
    "pixels": "true pixels of the class",
    "objects": "true objects of the class",
    "threshold": "score from which an answer counts: the one with the best F1 on validation data",
    "precision": "share of the answers above the threshold that are right",
    "background": "its row: answers where nothing is; its column: objects that were missed",
    "recall": "share of the true objects that were found",
}
PREFIXES = {
    "box_": "of the boxes: ",
    "mask_": "of the masks: ",
    "clip_": "of one clip in the middle of each video: ",
}


def meaning(name: str) -> str:
    """A line on what a number or a column means; "" for one that is not known, as of a plug-in."""
    if name in MEANINGS:
        return MEANINGS[name]
    for prefix, words in PREFIXES.items():
        rest = name.removeprefix(prefix)
        if rest != name and rest in MEANINGS:
            return words + MEANINGS[rest]
    return ""
