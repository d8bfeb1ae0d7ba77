"""What the subnet's official miner makes of repositories: `python -I miner.py IMAGES OUT REPO...` prints it as JSON.

Runs in the environments of requirements.txt and requirements-fast.txt beside it, where there is no natix_hf, and
loads as the miner does:

    pipeline("image-classification", model=AutoModelForImageClassification.from_pretrained(repo),
             feature_extractor=AutoImageProcessor.from_pretrained(repo, use_fast=True))

The fast processor needs torchvision, which only the environment of requirements-fast.txt has. In the other one, that
the call asks for it shows that its class was found; the slow one of the same file then takes its place.
OUT gets `N.npy`: the first image as repository N's model sees it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline


def load(repo: str) -> tuple[Any, dict[str, Any]]:
    """The miner's classifier, and what loading said."""
    model, info = AutoModelForImageClassification.from_pretrained(repo, output_loading_info=True)
    try:
        processor = AutoImageProcessor.from_pretrained(repo, use_fast=True)
        wanted = type(processor).__name__
    except ImportError as error:
        wanted = str(error).strip().splitlines()[0]
        processor = AutoImageProcessor.from_pretrained(repo, use_fast=False)
    classify = pipeline("image-classification", model=model, feature_extractor=processor)
    said = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return classify, said | {"fast_processor": wanted, "processor": type(classify.image_processor).__name__}


def ask(repo: str, images: list[Path], pixels: Path) -> dict[str, Any]:
    """The score of the label that is exactly "Roadwork" for each image, one call each as in the miner."""
    classify, said = load(repo)
    answers = [classify(Image.open(path)) for path in images]
    np.save(pixels, classify.preprocess(Image.open(images[0]))["pixel_values"].numpy())
    scores = [{row["label"]: row["score"] for row in answer}.get("Roadwork") for answer in answers]
    return said | {"labels": sorted({row["label"] for answer in answers for row in answer}), "scores": scores}


if __name__ == "__main__":
    folder, out, *repos = sys.argv[1:]
    images = sorted(Path(folder).iterdir())
    answers = [ask(repo, images, Path(out) / f"{n}.npy") for n, repo in enumerate(repos)]
    present = [name for name in ("natix_hf", "torchvision") if importlib.util.find_spec(name) is not None]
    print(json.dumps({"transformers": transformers.__version__, "present": present, "answers": answers}))
