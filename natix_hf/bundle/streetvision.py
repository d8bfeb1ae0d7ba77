"""What a bundle must be so that the subnet's official miner answers with it, checked before it is deployed."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from natix_hf.bundle.load import Bundle, is_from_hub
from natix_hf.bundle.names import CONFIG, MODEL_CARD, PROCESSOR, WEIGHTS
from natix_hf.bundle.stream import BadImage
from natix_hf.data.images import open_image
from natix_hf.errors import DataError, HubError, UsageError, VerificationError, cut, first_line
from natix_hf.intake.formats import readable_endings
from natix_hf.labels import SUBNET, names_in
from natix_hf.provenance.hub import hub_errors
from natix_hf.provenance.strict import read_strictly
from natix_hf.subnet.challenge import challenge_image
from natix_hf.subnet.checks import Check, either
from natix_hf.subnet.hotkey import is_hotkey
from natix_hf.subnet.official import CLASSIFIERS, IMAGE_SIZE, PROCESSORS, TIMEOUT_S, TRANSFORMERS, size_line

if TYPE_CHECKING:
    from natix_hf.bundle.policy import Policy

_FIELDS = ("model_name", "description", "version", "submitted_by", "submission_time")
_DAY = 24 * 3600
CLOSE = 1e-4  # of scores: rounding moves one by some 1e-7, other pixels by more
_HALF_OF_THE_TIME = 0.5  # an answer that takes more has little room for a slower box


def bundle_checks(folder: Path, policy: Policy, hotkey: str | None = None) -> list[Check]:
    """What of a bundle the official miner cannot use. Its files must have been verified.

    Args:
        hotkey: The hotkey that `model_card.json` must name, if the caller states one.
    """
    config, processor = read_strictly(folder / CONFIG), read_strictly(folder / PROCESSOR)
    size, architecture = processor["size"], config["model_type"]
    height = size.get("height") if size.get("height") == size.get("width") else None
    kind = processor.get("image_processor_type")
    remote = [name for name, content in ((CONFIG, config), (PROCESSOR, processor)) if "auto_map" in content]
    return [
        either(
            "files",
            (folder / WEIGHTS).is_file(),
            f"{WEIGHTS}, {CONFIG}, {PROCESSOR}",
            f"there is no {WEIGHTS}: export it",
        ),
        either("remote code", not remote, "none is needed", f"{remote} names code, which the miner does not run"),
        either("image size", height == IMAGE_SIZE, f"{IMAGE_SIZE} px", size_line(height or 0)),
        _labels(config),
        either(
            "architecture",
            architecture in CLASSIFIERS,
            f"transformers {TRANSFORMERS} has a classifier for {architecture}",
            f"transformers {TRANSFORMERS}, which the miner runs, has no classifier for {architecture}: train a vit, "
            "dinov2, convnextv2 or swinv2",
        ),
        either(
            "processor",
            kind in PROCESSORS,
            f"a {kind}",
            f"the miner's call finds a {PROCESSORS[0]} only, and this is {cut(kind)}: export it again",
        ),
        _fold(policy),
        *_card(folder, hotkey),
    ]


def _labels(config: dict[str, Any]) -> Check:
    try:
        found = names_in(config.get("id2label"))
    except UsageError as error:
        return Check("labels", "wrong", f"{error}: export it again")
    told = f"{found.no} and {found.yes}"
    wrong = f'the miner reads the label "{SUBNET.yes}", and this model answers {told}: leave data.labels out and train'
    return either("labels", found == SUBNET, f"0 {found.no}, 1 {found.yes}", wrong)


def _fold(policy: Policy) -> Check:
    if policy.fold == "decision":
        return Check("decision", "ok", "the validator's cut at 0.5 is the fitted threshold")
    [at] = (1 / (1 + np.exp(-np.array([policy.folded_threshold])))).tolist()
    if at == 0.5:
        return Check("decision", "ok", f"phase6.fold is {policy.fold}, and the fitted threshold is 0.5")
    lost = (
        f"scores between 0.5 and {at:.4f} count as the other answer" if f"{at:.4f}" != "0.5000" else "it is near 0.5"
    )
    return Check(
        "decision",
        "warning",
        f"phase6.fold is {policy.fold}, so the validator's cut at 0.5 is not the fitted threshold, which the miner's "
        f"score reaches at {at:.4f}: {lost}; phase6.fold=decision makes them one",
    )


def _card(folder: Path, hotkey: str | None) -> Iterator[Check]:
    """The five fields of `model_card.json`."""
    name = MODEL_CARD
    if not (folder / name).is_file():
        yield Check(
            name, "wrong", "there is none: set phase6.submitted_by=HOTKEY and phase6.version, and run phase 6 again"
        )
        return
    try:
        card = read_strictly(folder / name)
    except VerificationError as error:
        yield Check(name, "wrong", f"{error}")
        return
    if not isinstance(card, dict) or set(card) != set(_FIELDS):
        yield Check(name, "wrong", f"it must have the keys {', '.join(_FIELDS)} and no other: run phase 6 again")
        return
    version, time_sent, address = card["version"], card["submission_time"], card["submitted_by"]
    texts = all(isinstance(card[key], str) and card[key].strip() for key in ("model_name", "description"))
    numbered = isinstance(version, str) and re.fullmatch(r"\d+\.\d+\.\d+", version, re.ASCII) is not None
    dated = type(time_sent) is int and 0 < time_sent < time.time() + _DAY
    known = isinstance(address, str) and is_hotkey(address)
    wrong = {
        f"version is {cut(version)}: it must be X.Y.Z (phase6.version)": numbered,
        f"submission_time is {cut(time_sent)}: it must be seconds since 1970, in the past": dated,
        "model_name or description is no text": texts,
        f"submitted_by is {cut(address)}, which is no hotkey: a letter is wrong (phase6.submitted_by)": known,
    }
    for problem, holds in wrong.items():
        if not holds:
            yield Check(name, "wrong", problem)
    if hotkey is not None and address != hotkey:
        yield Check(
            name, "wrong", f"submitted_by is {cut(address)}, and your hotkey is {hotkey}: set phase6.submitted_by"
        )
    elif all(wrong.values()):
        yield Check(name, "ok", f"version {version}, hotkey {address}")


def repository_check(reference: str, revision: str | None, folder: Path) -> Check:
    """Whether the miner, without a token, gets the very files that were checked: from the main branch of the Hub."""
    what = "repository"
    if not is_from_hub(reference):
        told = f"natix-hf push {reference} ORG/NAME, then natix-hf deploy streetvision ORG/NAME"
        return Check(what, "wrong", f"this folder lies here, and the miner loads from the Hub: {told}")
    from huggingface_hub import HfApi

    try:
        with hub_errors(reference, "look up", "nothing was compared"):
            info: Any = HfApi(token=False).model_info(reference)
    except UsageError:
        told = "make it public on the Hub, or log the miner's box in with a token that may read it"
        return Check(what, "wrong", f"nobody can read {reference} without a token: {told}")
    except HubError as error:
        return Check(what, "unknown", f"not compared with the Hub: {error}")
    if getattr(info, "gated", False):
        return Check(what, "wrong", f"{reference} is gated: the miner asks without a token; open it on the Hub")
    if getattr(info, "private", False):
        return Check(what, "wrong", f"{reference} is private: make it public on the Hub")
    if info.sha != folder.name:
        checked = f"commit {folder.name[:12]} was checked"
        told = f"the miner loads the main branch, which is at {str(info.sha)[:12]}"
        return Check(what, "wrong", f"{checked}, and {told}: leave --revision out, or push that version")
    return Check(what, "ok", f"{reference} is public; main is at {folder.name[:12]}, which was checked")


@dataclass(frozen=True)
class Rehearsal:
    """A stock pipeline's answers beside the bundle's.

    Args:
        images: Pictures that were asked about.
        bad: Pictures that cannot be read.
        flipped: Pictures of which the validator's cut at 0.5 makes another answer than the bundle gives.
        worst: The largest difference between the pipeline's score and the one that the policy promises.
        folded: The fitted threshold is folded into the model, so that no picture may be flipped.
        abstained: Pictures on which the bundle abstains. The miner answers them.
        seconds: The time of one answer of the pipeline, in the median.
        threads: Threads of torch meanwhile.
    """

    images: int
    bad: list[BadImage]
    flipped: int
    worst: float
    folded: bool
    abstained: int
    seconds: float
    threads: int

    def checks(self, given: bool) -> list[Check]:
        """As checks. `given`: the pictures are the caller's."""
        unread = [Check("picture", "warning", f"left out: {bad.problem}") for bad in self.bad]
        if not self.images:
            told = "none of the pictures can be read: name others with --images"
            return [Check("rehearsal", "wrong", told), *unread]
        took = f"one answer takes {self.seconds:.2f} s on this machine with {self.threads} threads"
        room = f"a validator waits {TIMEOUT_S:g} s"
        state: Any = "ok" if self.seconds <= TIMEOUT_S * _HALF_OF_THE_TIME else "warning"
        if self.seconds > TIMEOUT_S:
            state = "wrong"
        more = "" if state == "ok" else ": take a smaller model, or a faster box"
        found = [Check("time", state, f"{took}, and {room}{more}")]
        if not given:
            return found
        told = f"{self.images} pictures as level 0 sends them: the miner's cut at 0.5 decides {self.flipped} otherwise"
        differ = f"{told}; the scores are those promised to {self.worst:.1e}"
        fits = self.worst <= CLOSE
        state = "ok" if fits and not self.flipped else "wrong" if self.folded or not fits else "warning"
        found.append(Check("rehearsal", state, differ))
        if self.abstained:
            abstained = f"the bundle abstains on {self.abstained} of {self.images}, and the miner answers them all"
            found.append(Check("abstention", "ok", f"{abstained}; read_policy.py in the bundle tells them"))
        return found + unread


def pictures_in(folder: Path) -> list[Path]:
    """The picture files below a folder, in order, or the file itself.

    Raises:
        UsageError: if there is none.
    """
    if folder.is_file():
        return [folder]
    endings = readable_endings()
    found = sorted(
        Path(inside) / name
        for inside, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in endings and not name.startswith(".")
    )
    if not found:
        raise UsageError(f"--images {folder}: there is no picture there")
    return found


def rehearse(bundle: Bundle, pictures: Iterable[Path]) -> Rehearsal:
    """Ask a stock pipeline, as the miner does, and the bundle about pictures as a validator sends them at level 0.

    It runs the transformers that is installed here. That the official one answers alike is tested where it can be
    installed (`make test-miner`).
    """
    import torch
    from transformers import pipeline

    from natix_hf.models.bars import no_loading_bars

    with no_loading_bars():
        classify: Any = pipeline("image-classification", model=str(bundle.folder), device="cpu")
    yes, policy = bundle.policy.labels.yes, bundle.policy
    asked = flipped = abstained = 0
    worst, bad, times = 0.0, [], []
    for path in pictures:
        try:
            view = challenge_image(open_image(path, str(path)), 0, 0)
        except (DataError, ValueError) as error:
            bad.append(BadImage(str(path), first_line(error)))
            continue
        began = time.perf_counter()
        answers: Any = classify(view)
        times.append(time.perf_counter() - began)
        score = {answer["label"]: answer["score"] for answer in answers}.get(yes, float("nan"))
        [own] = bundle.predict([view])
        z = bundle.logits([view])
        promised = float(1 / (1 + np.exp(-(policy.folded_slope * z - policy.folded_shift)))[0])
        asked += 1
        flipped += (np.round(score) == 1) != (own.label == yes)
        abstained += not own.accepted
        worst = float(np.maximum(worst, abs(score - promised)))  # a NaN stays one
    took = float(np.median(times[1:] or times)) if times else float("nan")
    folded = policy.fold == "decision"
    return Rehearsal(asked, bad, int(flipped), worst, folded, abstained, took, torch.get_num_threads())


def one_answer(bundle: Bundle) -> Rehearsal:
    """Ask about plain pictures, for the time that an answer takes."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "grey.png"
        Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (120, 120, 120)).save(picture)
        return rehearse(bundle, [picture] * 4)
