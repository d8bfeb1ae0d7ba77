"""Build a bundle from an allow-list of files, then reload it from disk and compare it with the candidate."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from natix_hf.bundle.contents import require_intact
from natix_hf.bundle.folding import fold_into
from natix_hf.bundle.inference import Backend, ImageList, Inference
from natix_hf.bundle.manifest import write_bundle_manifest
from natix_hf.bundle.names import CONFIG, EVALUATION, MODEL_CARD, ONNX, POLICY, PROCESSOR, READ_POLICY, WEIGHTS
from natix_hf.bundle.onnx_export import ONNX_TOLERANCE, export_onnx, onnx_difference
from natix_hf.bundle.policy import OnnxCopy, Policy, write_policy
from natix_hf.bundle.shipped import shipped_source
from natix_hf.errors import RunError
from natix_hf.models.classifier import head_of, load_classifier, save_model
from natix_hf.models.gate import GATE
from natix_hf.models.preprocess import Preprocess, exported_processor, load_processor
from natix_hf.models.schema import config_keys
from natix_hf.provenance.files import atomic_folder, file_sha256, read_json, write_json, write_text

# Folding in float32 moves a logit by rounding alone. A wrong weight moves it by far more.
RELOAD_TOLERANCE = 1e-4
_COMPARED_ONNX = 16  # images compared with the safetensors; all images are compared with the candidate's answers


def build_bundle(
    target: Path,
    candidate: Path,
    policy: Policy,
    *,
    evaluation: dict[str, Any],
    card: str,
    model_card: dict[str, Any] | None,
    plots: Sequence[Path],
    lineage: dict[str, Any],
    images: Sequence[Any],
    expected_logits: np.ndarray,
    gate: Path | None = None,
    onnx: bool = False,
) -> Policy:
    """Write the bundle of a candidate to `target`, completely or not at all.

    Args:
        candidate: The model folder of the candidate.
        policy: The policy, with an empty `model_sha256`.
        evaluation: The content of evaluation.json.
        card: The text of README.md.
        model_card: The subnet's five fields; None writes no such file.
        lineage: Where the bundle comes from, for the manifest.
        images: Original images on which the reloaded bundle is compared.
        expected_logits: The candidate's logits for these images, float64 [n].
        gate: The file of a learned gate; None uses the margin.
        onnx: Write `model.onnx` too.

    Returns:
        The policy with the hashes of the folded weights, of both configs and of the ONNX file.

    Raises:
        UsageError: if `onnx` is true and the export is not possible, as in `export_onnx`.
        RunError: if the reloaded bundle does not answer like the candidate.
    """
    with atomic_folder(target) as folder:
        model = load_classifier(candidate)
        fold_into(head_of(model), policy)
        processor = load_processor(candidate)
        save_model(folder, model, processor)
        _keep_known_keys(folder, processor)
        policy = replace(
            policy,
            model_sha256=file_sha256(folder / WEIGHTS),
            config_sha256=file_sha256(folder / CONFIG),
            processor_sha256=file_sha256(folder / PROCESSOR),
        )
        if onnx:
            export_onnx(folder, Preprocess(processor).image_size)
            difference = onnx_difference(folder, images[:_COMPARED_ONNX])
            if not difference <= ONNX_TOLERANCE:
                raise RunError(f"{ONNX} and {WEIGHTS} answer differently, by {difference:.1e}: it is not written")
            policy = replace(policy, onnx=OnnxCopy(file_sha256(folder / ONNX), difference))
        if gate is not None:
            shutil.copyfile(gate, folder / GATE)
        write_policy(folder / POLICY, policy)
        write_text(folder / READ_POLICY, shipped_source())
        write_json(folder / EVALUATION, evaluation)
        for plot in plots:
            (folder / "plots").mkdir(exist_ok=True)
            shutil.copyfile(plot, folder / "plots" / plot.name)
        write_text(folder / "README.md", card)
        if model_card is not None:
            write_json(folder / MODEL_CARD, model_card)
        write_bundle_manifest(folder, lineage)
        require_intact(folder)
        _compare_reloaded(folder, policy, images, expected_logits, "torch")
        if onnx:
            _compare_reloaded(folder, policy, images, expected_logits, "onnx")
    return policy


def _keep_known_keys(folder: Path, processor: Any) -> None:
    """Leave out of both configs what a backbone brought along and no class reads, so that a strict reader takes them.
    The comparison with the candidate's answers shows that nothing else went with it."""
    content = read_json(folder / CONFIG)
    known = config_keys(content["model_type"])
    write_json(folder / CONFIG, {key: value for key, value in content.items() if key in known})
    write_json(folder / PROCESSOR, exported_processor(processor))


def _compare_reloaded(
    bundle: Path, policy: Policy, images: Sequence[Any], expected: np.ndarray, backend: Backend
) -> None:
    inference = Inference(bundle, backend=backend)
    folded = inference.logits(ImageList(images, inference.preprocess))
    z = policy.unfold(folded)
    worst = float(np.abs(z - expected).max(initial=0.0))
    if not worst <= RELOAD_TOLERANCE * max(1.0, 1 / policy.folded_slope):  # unfolding stretches the rounding
        raise RunError(
            f"the reloaded bundle differs from the candidate by {worst:.2e} in the logit: it is not written"
        )
    flipped = int(((folded > policy.folded_threshold) != policy.decide(expected)).sum())
    if flipped:
        raise RunError(f"the reloaded bundle decides {flipped} of {len(images)} images differently: it is not written")
