"""Questions about real photographs, and out-of-fold answers to them that cost seconds: for audit.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from natix_hf.data.asked import ask
from natix_hf.data.rows import Rows, load_image_data
from natix_hf.data.views import AskedViews
from natix_hf.models.classifier import build_classifier
from natix_hf.models.preprocess import Preprocess, make_processor
from natix_hf.recipe import Recipe, load_recipe
from natix_hf.ssl.probe import backbone_features

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
FOLDS = 5
_SPEED_LIMITS = {f"{number:02d}" for number in range(9)}


@dataclass(frozen=True)
class Question:
    """Rows of train and val_select with features, and the official test split."""

    name: str
    answers: str
    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    test_features: np.ndarray
    test_labels: np.ndarray


def questions(only: str | None = None) -> Iterator[Question]:
    for recipe_name, names in {"gtsrb_roadwork": ("roadwork", "speed limit"), "fashion_shirt": ("shirt",)}.items():
        if only is not None and only not in names:
            continue
        recipe = load_recipe(recipe_name, [f"data.source={SHARED / recipe_name}"])
        data = load_image_data(recipe.data)
        rows = {role: data.role(role) for role in ("train", "val_select", "test")}
        for answers, compute in (("weak", of_backbone), ("strong", of_gradients)):
            found = {role: compute(of_role, recipe) for role, of_role in rows.items()}
            known = np.concatenate([found["train"], found["val_select"]])
            if answers == "strong":  # 2,000 numbers a row are slow to fit
                shorter = PCA(150, svd_solver="randomized", random_state=0).fit(known)
                known, found["test"] = shorter.transform(known), shorter.transform(found["test"])
            groups = np.concatenate([rows["train"].groups, rows["val_select"].groups])
            for name in names:
                if only in (None, name):
                    labels = np.concatenate([labels_of(rows[role], name) for role in ("train", "val_select")])
                    test = labels_of(rows["test"], name)
                    yield Question(name, answers, known, labels, groups, found["test"], test)


def labels_of(rows: Rows, question: str) -> np.ndarray:
    """The labels of the data, or whether the track's name begins with the number of a speed limit."""
    if question != "speed limit":
        return rows.labels
    return np.array([group.removeprefix("group:")[:2] in _SPEED_LIMITS for group in rows.groups], dtype=np.int64)


def of_backbone(rows: Rows, recipe: Recipe) -> np.ndarray:
    """Features of the packaged backbone, which was trained without labels on drawn streets."""
    model_of = load_recipe("gtsrb_roadwork").model
    model = build_classifier(model_of, seed=0)
    views = AskedViews(ask(rows), Preprocess(make_processor(model_of)))
    return backbone_features(model.base_model, views, range(len(rows)), batch_size=128)


def of_gradients(rows: Rows, recipe: Recipe) -> np.ndarray:
    """Histograms of gradients (Dalal and Triggs 2005: 9 directions, blocks of 2 x 2 cells) and 12 x 12 colours."""
    side, cell = (28, 4) if recipe.name == "fashion_shirt" else (48, 6)
    found = []
    for image in rows.images():
        small = image.resize((side, side), Image.Resampling.BILINEAR)
        colours = np.asarray(small.resize((12, 12), Image.Resampling.BILINEAR), dtype=np.float64)
        standard = (colours - colours.mean()) / (colours.std() + 1)
        grey = np.asarray(small.convert("L"), dtype=np.float64)
        found.append(np.concatenate([histograms(grey, cell).ravel(), standard.ravel()]))
    return np.asarray(found, dtype=np.float32)


def histograms(grey: np.ndarray, cell: int, directions: int = 9) -> np.ndarray:
    down, across = np.gradient(grey)
    size, angle = np.hypot(across, down), np.arctan2(down, across) % np.pi / np.pi * directions
    lower = np.floor(angle).astype(int)
    count = len(grey) // cell
    y, x = (axis // cell for axis in np.indices(grey.shape))
    cells = np.zeros((count, count, directions))
    np.add.at(cells, (y, x, lower % directions), size * (1 - (angle - lower)))
    np.add.at(cells, (y, x, (lower + 1) % directions), size * (angle - lower))
    blocks = np.concatenate([cells[:-1, :-1], cells[1:, :-1], cells[:-1, 1:], cells[1:, 1:]], axis=-1)
    normalised: np.ndarray = blocks / np.sqrt((blocks**2).sum(axis=-1, keepdims=True) + 1)
    return normalised


def fitted(features: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The logits of a logistic regression on other rows, within the range that float probabilities have."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300)).fit(features, labels)
    logits: np.ndarray = np.clip(model.decision_function(asked).astype(np.float64), -20, 20)
    return logits


def out_of_fold(question: Question, labels: np.ndarray, seed: int) -> np.ndarray:
    """Answers of models that have not seen the row's group. Groups are stratified by label."""
    _, group = np.unique(question.groups, return_inverse=True)
    positive = np.bincount(group, labels) * 2 >= np.bincount(group)
    fold, dice = np.empty(len(positive), dtype=np.int64), np.random.default_rng(seed)
    for label in (False, True):
        members = np.flatnonzero(positive == label)
        fold[dice.permutation(members)] = np.arange(len(members)) % FOLDS
    logits = np.empty(len(labels))
    for number in range(FOLDS):
        held = fold[group] == number
        logits[held] = fitted(question.features[~held], labels[~held], question.features[held])
    return logits
