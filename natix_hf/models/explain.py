"""Why a classifier answered as it did: which places of the picture moved its answer, as a heatmap.

`"gradient"` is integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365), summed over the pixels of
each cell. It is averaged over four pictures to begin with, as Erion et al. (2021, arXiv 1906.10670) average over many:
the view blurred, in its mean colour, black, and white. What a view shares with its beginning counts for nothing: with
the first two alone a model that goes by a colour was explained wrongly, because that colour is in them.
`"rollout"` is attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): where the model looked, whatever it
answered. `benchmarks/explain.py` measures both.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from natix_hf.errors import NatixError, UsageError, cut
from natix_hf.models.architectures import ARCHITECTURES, architecture_of, prefix_tokens
from natix_hf.models.classifier import load_classifier
from natix_hf.models.positions import fix_positions
from natix_hf.models.preprocess import Preprocess, read_settings

METHODS = ("gradient", "rollout")
_STEPS = 8  # points on the way from each beginning to the picture: 16 gave curves that were not better
_AT_ONCE = 4  # pictures in one pass of a view of 224 px; the larger the view the fewer, which bounds the memory
_LITTLE = 0.1  # evidence below this share of the distance to the threshold fades
_BLUR = 0.1  # standard deviation of the blur, as a share of the side


class OutOfTime(NatixError):
    """The evidence of a view would have taken longer than it may."""


def check_method(method: Any, model_type: str | None = None) -> None:
    """Refuse a method that there is not, or that a model does not have.

    Raises:
        [`UsageError`]: with the methods, or the architectures, that there are.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise UsageError(f"method is {cut(method)}: allowed is {' | '.join(METHODS)}")
    if model_type is None:
        return
    found = architecture_of(model_type)
    if found is None:
        raise UsageError(f"a {cut(model_type)} cannot be explained here: supported are {', '.join(ARCHITECTURES)}")
    if method == "rollout" and found.stages:
        raise UsageError(
            f'method="rollout" needs attention from every place to every other, which a {model_type} lacks: use '
            'method="gradient"'
        )


class Explainer:
    """A copy of a merged model in float32, for heatmaps alone. The model that answers stays as it is.

    Several threads may share it.

    Args:
        folder (`Path`): A candidate or a bundle, with its image processor.
        device (`torch.device`, *optional*): Defaults to the CPU.

    Raises:
        [`UsageError`]: its architecture is not supported.
        [`VerificationError`]: it cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        # The caller may be in inference mode, and weights that are made there can have no gradient pass through them.
        with torch.inference_mode(False):
            self.model: Any = load_classifier(folder)
        self.model_type = str(self.model.config.model_type)
        check_method("gradient", self.model_type)
        self.preprocess = Preprocess(read_settings(folder))
        self.model.requires_grad_(False).eval().to(device)
        with torch.inference_mode(False):
            fix_positions(self.model, self.preprocess.image_size)
        self.device = torch.device(device)
        self._lock = threading.Lock()  # one at a time: a pass with gradients takes several times the memory

    def evidence(
        self, pixel_values: np.ndarray, yes: bool, method: str = "gradient", until: float | None = None
    ) -> np.ndarray:
        """What each cell of a view did for an answer.

        Args:
            pixel_values (`np.ndarray` of float32 [3, S, S]): The view, as the processor makes it.
            yes (`bool`): The answer: True for label 1.
            method (`str`, defaults to `"gradient"`): `"gradient"` or `"rollout"`.
            until (`float`, *optional*): The value of `time.monotonic()` from which on no further pass begins. One view
                of a large model takes minutes on a CPU.

        Returns:
            `np.ndarray` of float64 [g, g]. For `"gradient"` the part of the logit difference of that answer over the
            other one that the cell accounts for: positive speaks for the answer, negative against it. Eight steps give
            the order of the places well and the sum roughly. For `"rollout"` the share of the attention, whose sum is
            at most 1.

        Raises:
            [`UsageError`]: the model does not have the method.
            [`OutOfTime`]: `until` has come.
        """
        check_method(method, self.model_type)
        # Whatever mode the caller is in. No process-wide setting is touched: other threads answer meanwhile.
        with self._lock, torch.inference_mode(False), torch.enable_grad():
            pixels = torch.tensor(np.asarray(pixel_values, dtype=np.float32), device=self.device)
            if method == "rollout":
                return self._rollout(pixels)
            return self._integrated(pixels, 1.0 if yes else -1.0, until)

    def logit(self, pixel_values: np.ndarray) -> float:
        """The logit difference, label 1 over label 0, of a view float32 [3, S, S]."""
        with self._lock, torch.inference_mode():
            pixels = torch.tensor(np.asarray(pixel_values, dtype=np.float32), device=self.device)
            no, yes = self.model(pixel_values=pixels[None]).logits[0].double().tolist()
        return float(yes - no)

    def _integrated(self, pixels: torch.Tensor, sign: float, until: float | None) -> np.ndarray:
        moved = torch.zeros_like(pixels, dtype=torch.float64)
        shares = (torch.arange(_STEPS, device=self.device, dtype=torch.float32) + 0.5) / _STEPS
        starts = self.starts(pixels)
        at_once = min(_AT_ONCE, max(1, _AT_ONCE * 224**2 // pixels.shape[-1] ** 2))
        for start in starts.values():
            way = pixels - start
            for part in torch.split(shares, at_once):
                if until is not None and time.monotonic() >= until:
                    raise OutOfTime("the time for this heatmap is over")
                points = (start + part[:, None, None, None] * way).requires_grad_(True)
                logits = self.model(pixel_values=points).logits
                [gradient] = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), points)
                moved += gradient.double().sum(dim=0) * way.double() / (_STEPS * len(starts))
        of_cells = functional.avg_pool2d(moved.sum(dim=0)[None], self.cell, ceil_mode=True, divisor_override=1)[0]
        return np.asarray(sign * of_cells.cpu().numpy())

    def starts(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pictures without objects that a view [3, S, S] is compared with, by name."""
        settings = self.preprocess.processor
        mean, std = (pixels.new_tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
        return {
            "blur": blurred(pixels),
            "mean": pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels),
            "black": ((0.0 - mean) / std).expand_as(pixels),
            "white": ((1.0 - mean) / std).expand_as(pixels),
        }

    def _rollout(self, pixels: torch.Tensor) -> np.ndarray:
        usual = self.model.config._attn_implementation
        # Only this one gives its attention away. It keeps tokens x tokens in every layer: too much for gradients.
        self.model.set_attn_implementation("eager")
        try:
            with torch.no_grad():
                layers = self.model(pixel_values=pixels[None], output_attentions=True).attentions
        finally:
            self.model.set_attn_implementation(usual)
        joint = torch.eye(layers[0].shape[-1], device=self.device, dtype=torch.float64)
        for layer in layers:  # [1, heads, tokens, tokens]
            mean = layer[0].double().mean(dim=0)
            # half is the block's residual path, which hands each token on as it is
            joint = (0.5 * mean + 0.5 * torch.eye(len(mean), device=self.device, dtype=torch.float64)) @ joint
        patches = joint[0, prefix_tokens(self.model.config) :].cpu().numpy()
        side = round(len(patches) ** 0.5)
        return np.asarray(patches.reshape(side, side))

    @property
    def cell(self) -> int:
        """Side of a cell in px: a patch; in a model with stages, what the last stage but one sees as one place."""
        config = self.model.config
        stages = len(config.depths) if ARCHITECTURES[self.model_type].stages else 0
        return int(config.patch_size) << max(0, stages - 2)


def blurred(pixels: torch.Tensor) -> torch.Tensor:
    """A view without edges: [3, S, S] after a Gaussian blur, edges repeated."""
    sigma = _BLUR * pixels.shape[-1]
    reach = int(np.ceil(3 * sigma))
    at = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(pixels.dtype)
    padded = functional.pad(pixels[:, None], (reach, reach, reach, reach), mode="replicate")
    rows = functional.conv2d(padded, kernel[None, None, None, :])
    return functional.conv2d(rows, kernel[None, None, :, None])[:, 0]


def share_of(evidence: np.ndarray, distance: float) -> float:
    """How much of an answer stands on what is in the picture, 0 to 1.

    An answer may stand on what the picture lacks. Then the places that speak for it add up to little, and scaled to
    full heat they would look like a reason.

    Args:
        evidence: What `Explainer.evidence` gives for `"gradient"`.
        distance (`float`): Of the logit to the threshold.

    Returns:
        1 where the places that speak for the answer add up to a tenth of the distance or more, 0 where none does.
    """
    positive = float(np.clip(evidence, 0.0, None).sum())
    return min(1.0, positive / (_LITTLE * distance)) if distance > 0 else float(positive > 0)


def heat_of(evidence: np.ndarray, image_size: int, share: float = 1.0) -> np.ndarray:
    """The heat of a view from the evidence of its cells: what speaks for the answer, `share` at the most, 0 elsewhere.

    Returns:
        `np.ndarray` of float32 [S, S], between the cells' centres interpolated linearly. All 0 if nothing speaks for
        the answer.
    """
    positive = np.clip(evidence, 0.0, None)
    most = float(positive.max(initial=0.0))
    if not most > 0.0 or not np.isfinite(most):
        return np.zeros((image_size, image_size), dtype=np.float32)
    cells = torch.from_numpy(positive / most)[None, None]
    smooth = functional.interpolate(cells, size=(image_size, image_size), mode="bilinear", align_corners=False)
    found = smooth[0, 0].numpy()
    return np.asarray(share * (found / found.max()), dtype=np.float32)
