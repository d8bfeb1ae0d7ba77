"""The JSON of an answer, one form for the server, the endpoint and the policy."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import numpy as np

from natix_hf.bundle.policy import Policy
from natix_hf.errors import UsageError, printable, shortened

_LONGEST_NAME = 120
_DATA_URL = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w.+=-]+)*;base64,", re.ASCII)
# What an error line about a picture says to the user of a recipe, and not to the client of a server.
_OF_A_RECIPE = ", or raise data.max_megapixels"


def answer_json(name: str, answer: Any) -> dict[str, Any]:
    """The answer for one picture: the fields of a [`Prediction`], or `error` for a [`BadImage`]. Floats keep every
    digit."""
    problem = getattr(answer, "problem", None)
    if problem is not None:
        return {"image": name, "error": problem.replace(_OF_A_RECIPE, "")}
    fields = ("decision", "label", "probability", "threshold", "accepted")
    return {"image": name, **{field: getattr(answer, field) for field in fields}}


def picture_name(index: int, given: str | None = None) -> str:
    """The name of a picture in its answer: that of the client's file, without folders, or its position."""
    bare = re.split(r"[/\\]", given or "")[-1].strip()
    return shortened(printable(bare), _LONGEST_NAME) if bare else f"image {index}"


def from_base64(text: str, name: str) -> bytes:
    """The bytes of a picture in base64, as plain text or as a data URL. Line breaks are taken.

    Raises:
        UsageError: if it is neither.
    """
    found = _DATA_URL.match(text[:200])
    bare = "".join(text[found.end() if found else 0 :].split())
    try:
        content = base64.b64decode(bare, validate=True)
    except (binascii.Error, ValueError):  # a letter outside ASCII is a ValueError
        raise UsageError(f"{name} is no base64: send the bytes of an image file in standard base64") from None
    if not content:
        raise UsageError(f"{name} is empty")
    return content


def policy_json(policy: Policy) -> dict[str, Any]:
    """How the bundle decides, for people and programs. It names no file and no path.

    `threshold` is the probability above which the answer is yes; `threshold_logit` is the same cut on the logit.
    """
    [threshold] = policy.probability(np.array([policy.threshold_logit])).tolist()
    promise = policy.promise
    return {
        "labels": {"no": policy.labels.no, "yes": policy.labels.yes},
        "threshold": threshold,
        "threshold_logit": policy.threshold_logit,
        "calibration": {
            "method": policy.calibration.method,
            "slope": policy.calibration.slope,
            "intercept": policy.calibration.intercept,
        },
        "confidence": {"kind": policy.gate.kind, "method": policy.gate.method},
        "promise": {
            "in_words": promise.guarantee,
            "holds": promise.feasible,
            "loss": promise.loss,
            "alpha": promise.alpha,
            "delta": promise.delta,
            "classwise": promise.classwise,
            "prior": list(promise.prior) if promise.prior else None,
            "accept_above": promise.accept_above,
        },
        "fold": policy.fold,
    }
