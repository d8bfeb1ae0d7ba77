"""`model.onnx` run by OpenVINO on the CPU, in float32 or in bfloat16. Needs neither torch nor transformers."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from natix_hf.bundle.backends import Precision, threads
from natix_hf.bundle.names import ONNX, WEIGHTS
from natix_hf.errors import UsageError, VerificationError, first_line

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def openvino_forward(folder: Path, precision: Precision = "float32") -> Any:
    """Make the forward pass of a bundle's ONNX file in OpenVINO, with as many threads as torch would use.

    OpenVINO computes in bfloat16 by itself where the CPU has it, so the precision is set, and read back. With bfloat16
    the classifier layer stays in float32, as with torch: it is computed here, from the weights of the safetensors.

    Raises:
        UsageError: if OpenVINO is not installed, or if this CPU cannot compute in that precision.
        VerificationError: if OpenVINO cannot run the file.
    """
    try:
        import openvino
    except ImportError as error:
        raise UsageError(f"backend openvino needs it: pip install 'natix_hf[openvino]' ({error})") from None
    path = folder / ONNX
    settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "INFERENCE_NUM_THREADS": threads()}
    try:
        core = openvino.Core()
        model = core.compile_model(core.read_model(str(path)), "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
        taken = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        names = sorted(name for port in (*model.inputs, *model.outputs) for name in port.get_names())
        ports = {name: model.output(name) for name in ("logits", "features")}
    except Exception as error:  # OpenVINO's errors share no base class
        raise VerificationError(f"{path} cannot be run by OpenVINO ({first_line(error)})") from None
    if taken != _HINTS[precision]:
        raise UsageError(
            f"OpenVINO computes in {taken} on this CPU, not in {precision}: leave out precision or backend"
        )
    if not {"pixel_values", "logits", "features"} <= set(names):
        raise VerificationError(f"{path} does not have the inputs and outputs of a bundle: it has {', '.join(names)}")
    request, one_at_a_time = model.create_infer_request(), threading.Lock()
    head = None if precision == "float32" else _classifier_layer(folder / WEIGHTS)

    def forward(pixel_values: Any) -> tuple[np.ndarray, np.ndarray]:
        with one_at_a_time:
            found = request.infer({"pixel_values": np.ascontiguousarray(pixel_values, dtype=np.float32)})
            logits, features = (np.array(found[ports[name]], dtype=np.float32) for name in ("logits", "features"))
        return (logits if head is None else features @ head[0].T + head[1]), features

    return forward


def _classifier_layer(weights: Path) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(weights, framework="numpy") as file:
        return file.get_tensor("classifier.weight"), file.get_tensor("classifier.bias")
