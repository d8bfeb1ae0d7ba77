"""Whether the weights of an exported model are those of the architecture that its config describes.

The comparison reads the header of the safetensors and builds the model on the meta device: no weight is allocated, so
a size that the file does not hold costs nothing. Loading then compares the tensors by name. torch and transformers are
imported only for that, so a bundle that answers from another file needs neither.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from natix_hf.errors import VerificationError, shortened
from natix_hf.models.gate_file import gate_shapes
from natix_hf.models.header import Shapes, tensor_shapes
from natix_hf.models.schema import number_of_blocks

_FEWEST_OF_A_LAYER = 8  # tensors
_HEAD = "classifier.weight"
# What transformers raises for values that make no model.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError)


def weights_problems(weights: Path, config: dict[str, Any], most: int, runs: bool = True) -> list[str]:
    """One line if a file does not hold exactly the tensors of a model, by number and shape; else an empty list.

    Args:
        config: The content of a `config.json` without faults (see `natix_hf.models.schema`).
        most: The number of bytes that the file may have.
        runs: The weights are to be run. If not, no model is built: the file must be sound and hold a classifier layer.
    """
    try:
        found = tensor_shapes(weights, most)
        layers = number_of_blocks(config)
        if layers * _FEWEST_OF_A_LAYER > len(found):  # before a model of many layers is built
            return [f"{weights} holds {len(found)} tensors, too few for the {layers} layers of config.json"]
        if not runs:
            head = found.get(_HEAD, ())
            return [] if len(head) == 2 and head[0] == 2 else [f"{weights} holds no {_HEAD} of two answers"]
        expected = _shapes_of(json.dumps(config, sort_keys=True))
    except VerificationError as error:
        return [str(error)]
    except _REFUSALS as error:
        return [
            f"{weights.parent / 'config.json'} describes no model ({shortened(' '.join(str(error).split()), 200)})"
        ]
    here, wanted = Counter(found.values()), Counter(expected.values())
    if here == wanted and found.get(_HEAD) == expected[_HEAD]:
        return []
    shape = min((here - wanted) + (wanted - here), default=expected[_HEAD])
    where = f"{here[shape]} tensors of shape {list(shape)}, and the model in config.json has {wanted[shape]}"
    return [f"{weights} holds {where}: the two do not belong together"]


def gate_problems(gate: Path, weights: Path, most: int) -> list[str]:
    """One line if a file holds no gate for the features of a model; else an empty list.

    Args:
        weights: The file of the model, without problems.
        most: The number of bytes that the gate may have.
    """
    try:
        found, features = tensor_shapes(gate, most), tensor_shapes(weights, 2**62)[_HEAD][1]
    except VerificationError as error:
        return [str(error)]
    hidden = found.get("layers.0.bias") or (0,)
    if found == gate_shapes(features + 2, hidden[0]):
        return []
    return [f"{gate} is no gate for the {features} features of {weights.name}"]


@functools.lru_cache(maxsize=8)
def _shapes_of(config: str) -> Shapes:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    import natix_hf.models.classifier  # noqa: F401  # registers the classes that transformers lacks

    given = json.loads(config)
    architecture = AutoConfig.for_model(given.pop("model_type"), **given)
    with torch.device("meta"):
        model = AutoModelForImageClassification.from_config(architecture, dtype=torch.float32)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
