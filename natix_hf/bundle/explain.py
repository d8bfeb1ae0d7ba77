"""Why a bundle answered as it did: the answer, and a heatmap of the places that moved it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from natix_hf.bundle.names import CONFIG, WEIGHTS
from natix_hf.bundle.stream import BadImage, batches
from natix_hf.errors import DataError, UsageError, VerificationError
from natix_hf.provenance.files import file_sha256, read_json

if TYPE_CHECKING:
    from natix_hf.bundle.load import Bundle, Prediction
    from natix_hf.models.explain import Explainer

_PICTURE_PX = 224  # side of a picture, at least
_STRONGEST = 0.65  # how much of the picture the hottest place covers


@dataclass(frozen=True, eq=False)
class Explanation:
    """An answer, and what moved it.

    Args:
        prediction ([`Prediction`]): The answer, as `predict` gives it.
        heat (`np.ndarray` of float32 [S, S]): From 0 to 1, on the view that the model sees: the centre square at its
            own size. The highest is the place that speaks most for `prediction.label`: 1, or less if the answer stands
            on what the picture lacks. 0 is a place that does not speak for it; all 0 if none does.
        method (`str`): `"gradient"` or `"rollout"`.
        evidence (`np.ndarray` of float64 [g, g]): What the heat is made of, one value for each cell of the view. With
            `"gradient"` in units of the model's logit difference: positive for the label, negative against it. With
            `"rollout"` the share of the attention, which knows of no label.
        view (`PIL.Image`): The view.
        told (`str`): One line that says what the heat shows, for a caption.
    """

    prediction: Prediction
    heat: np.ndarray
    method: str
    evidence: np.ndarray
    view: Image.Image
    told: str

    def picture(self) -> Image.Image:
        """The view with the heat over it, at least 224 px wide."""
        return overlay(self.view, self.heat)


def explain(bundle: Bundle, image: Any, method: str = "gradient") -> Explanation:
    """See [`Bundle.explain`]."""
    explain_on = _explainer(bundle, method)
    picture = _opened(image)
    [prediction] = bundle.predict([picture])
    pixels = bundle.preprocess.pixels(picture)
    return explain_on(pixels, prediction)


def require_explain(bundle: Bundle, method: str = "gradient") -> None:
    """Refuse what cannot be explained, before a model is loaded for it.

    Raises:
        UsageError: if PyTorch is not here, or if the method or the architecture has no heatmap.
    """
    try:
        from natix_hf.models.explain import check_method
    except ImportError as error:
        raise UsageError(f"explain needs PyTorch, whatever runs the model: pip install natix_hf ({error})") from None
    check_method(method, str(read_json(bundle.folder / CONFIG)["model_type"]))


def _explainer(bundle: Bundle, method: str) -> Callable[[np.ndarray, Prediction], Explanation]:
    require_explain(bundle, method)
    from natix_hf.models.explain import heat_of, share_of

    explainer = _model_of(bundle)

    def explained(pixels: np.ndarray, prediction: Prediction) -> Explanation:
        yes = prediction.label == bundle.policy.labels.yes
        evidence = explainer.evidence(pixels, yes, method)
        distance = abs(explainer.logit(pixels) - bundle.policy.folded_threshold)
        share = share_of(evidence, distance) if method == "gradient" else 1.0
        heat = heat_of(evidence, pixels.shape[-1], share)
        view = view_of(pixels, bundle.preprocess.processor)
        return Explanation(prediction, heat, method, evidence, view, _told(bundle, prediction, share, method))

    return explained


def _told(bundle: Bundle, prediction: Prediction, share: float, method: str) -> str:
    if method == "rollout":
        said = "where the model looked, whatever it answered (attention rollout)"
    elif share == 1:
        said = f'what moved the answer towards "{prediction.label}" (gradient)'
    else:
        said = (
            f'hardly any place of this picture moved the answer towards "{prediction.label}": it stands on what the '
            "picture lacks, so the heat is faint (gradient)"
        )
    return said if bundle.precision == "float32" else f"{said}; the heat in float32, the answer in {bundle.precision}"


_models: WeakKeyDictionary[Bundle, Explainer] = WeakKeyDictionary()
_loading = threading.Lock()


def _model_of(bundle: Bundle) -> Explainer:
    """The copy of a bundle's model that heatmaps are made with: loaded once, and kept as long as the bundle."""
    from natix_hf.models.explain import Explainer

    with _loading:
        if bundle not in _models:
            for name, known in ((WEIGHTS, bundle.policy.model_sha256), (CONFIG, bundle.policy.config_sha256)):
                # The bundle was loaded some time ago, and the heat must be of the model that answers.
                if known is not None and file_sha256(bundle.folder / name) != known:
                    raise VerificationError(
                        f"{bundle.folder / name} has changed since the bundle was loaded: load it again"
                    )
            device = getattr(bundle._inference, "device", "cpu") if bundle.backend == "torch" else "cpu"
            _models[bundle] = Explainer(bundle.folder, device)
        return _models[bundle]


def _opened(image: Any) -> Image.Image:
    """The picture, opened once: an open file cannot be read twice, and a path may hold another picture by then."""
    keep: Any = lambda picture: picture  # noqa: E731
    [[read]] = batches([image], keep, 1)
    if isinstance(read, BadImage):
        raise DataError(read.problem)
    picture: Any = read
    opened: Image.Image = picture
    return opened


def explained_by(
    model: Path, threshold: float, until: float | None = None
) -> Callable[[Image.Image, bool], Image.Image]:
    """What draws heatmaps of a model's answers: from a picture and the answer, True for label 1, to `overlay`.

    Args:
        model: The folder of a merged model.
        threshold: The logit of that model above which the answer is yes.
        until: The value of `time.monotonic()` after which what it returns raises `OutOfTime`.

    Raises:
        UsageError: if it cannot be explained.
        VerificationError: if it cannot be loaded.
    """
    from natix_hf.models.device import default_device
    from natix_hf.models.explain import Explainer, heat_of, share_of

    explainer = Explainer(model, default_device())
    preprocess = explainer.preprocess

    def drawn(picture: Image.Image, yes: bool) -> Image.Image:
        pixels = preprocess.pixels(picture)
        evidence = explainer.evidence(pixels, yes, until=until)
        share = share_of(evidence, abs(explainer.logit(pixels) - threshold))
        return overlay(view_of(pixels, preprocess.processor), heat_of(evidence, pixels.shape[-1], share))

    return drawn


def view_of(pixels: np.ndarray, settings: Mapping[str, Any]) -> Image.Image:
    """The picture that a model sees, from its `pixel_values` float32 [3, S, S] and its `preprocessor_config.json`."""
    mean, std = (np.asarray(settings[key], dtype=np.float64)[:, None, None] for key in ("image_mean", "image_std"))
    values = (pixels.astype(np.float64) * std + mean) / settings["rescale_factor"]
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0))


def overlay(view: Image.Image, heat: np.ndarray) -> Image.Image:
    """A view in grey with its heat over it in colours that everybody can tell apart (viridis), at least 224 px wide.

    Args:
        heat: float32 [S, S], 0 to 1.
    """
    from matplotlib import colormaps

    times = -(-_PICTURE_PX // view.width)
    size = (view.width * times, view.height * times)
    grey = np.asarray(view.convert("L").resize(size, Image.Resampling.BICUBIC), dtype=np.float64)[:, :, None]
    warm = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR), dtype=np.float64)
    colours = colormaps["viridis"](warm)[:, :, :3] * 255
    cover = (_STRONGEST * (0.25 + 0.75 * warm))[:, :, None]
    return Image.fromarray(np.rint(grey * (1 - cover) + colours * cover).astype(np.uint8))
