"""The names of a bundle's files, and its place in a run. Light: imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

BUNDLE_MANIFEST = "bundle_manifest.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PROCESSOR = "preprocessor_config.json"
ONNX = "model.onnx"
POLICY = "policy.json"
EVALUATION = "evaluation.json"
README = "README.md"
MODEL_CARD = "model_card.json"  # the subnet's
READ_POLICY = "read_policy.py"  # answers by the policy where natix_hf cannot be installed
BUNDLE = "bundle"  # in the folder of the phase that exports
BUNDLE_IN_RUN = f"phase6_export/{BUNDLE}"


def bundle_of_run(run_dir: Path) -> Path:
    """The bundle folder of a run, whether it is there or not."""
    return run_dir / BUNDLE_IN_RUN


def run_of_bundle(bundle: Path) -> Path | None:
    """The run folder that a bundle lies in, or None if it lies elsewhere."""
    run_dir = Path(os.path.abspath(bundle)).parent.parent
    return run_dir if bundle_of_run(run_dir) == Path(os.path.abspath(bundle)) else None
