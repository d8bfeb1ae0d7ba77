"""What `config.json` and `preprocessor_config.json` of an exported model may hold: every key, its type and its range.

Both files come from strangers, and every value in them can change an answer or a machine's memory. So a key that this
module does not know is refused, and a size has a bound before anything is made of it. That sizes fit the weights is
the work of `natix_hf.models.fits`. Light: imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from natix_hf.errors import UsageError, cut
from natix_hf.labels import names_in
from natix_hf.models.architectures import ARCHITECTURES, has_fixed_size

LARGEST_IMAGE = 2048  # px
MOST_PATCHES = 2**14  # tokens of one image: 1792 px in patches of 14
_LONGEST_TEXT = 200


class Rule(NamedTuple):
    """What a value must be: a test, and its words."""

    holds: Callable[[Any], bool]
    allowed: str


def _whole(low: int, high: int) -> Rule:
    return Rule(lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high:,}")


def _number(low: float, high: float) -> Rule:
    def holds(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return Rule(holds, f"a number from {low:g} to {high:g}")


def _one_of(*values: Any) -> Rule:
    def holds(value: Any) -> bool:
        return any(type(value) is type(known) and value == known for known in values)

    return Rule(holds, " or ".join(map(repr, values)))


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.holds(value), f"{rule.allowed}, or null")


def _list(rule: Rule, low: int, high: int) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, list) and low <= len(value) <= high and all(map(rule.holds, value))

    return Rule(holds, f"a list of {low} to {high}, each {rule.allowed}")


_FLAG = _one_of(True, False)
_TEXT = Rule(lambda value: isinstance(value, str) and len(value) <= _LONGEST_TEXT, "a short text")
_SHARE = _number(0, 1)
_ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip
_MOST_LAYERS = 200
# What decides an answer and is seen in no tensor's shape, or is needed to make the model: it may not be left to the
# defaults of whoever loads the file.
_NEEDED: dict[str, Rule] = {
    "model_type": _one_of(*ARCHITECTURES),
    "hidden_size": _whole(1, 2**14),
    "num_hidden_layers": _whole(1, _MOST_LAYERS),
    "num_attention_heads": _whole(1, 2**10),
    "hidden_act": _one_of(*_ACTIVATIONS),
    "layer_norm_eps": _number(0, 1),
    "image_size": _whole(1, 2 * LARGEST_IMAGE),
    "patch_size": _whole(1, 512),
    "num_channels": _one_of(3),
    "id2label": Rule(lambda value: True, "the names of the labels 0 and 1"),  # compared with the policy's
}
_ROPE: dict[str, Rule] = {"rope_theta": _number(1e-3, 1e9)}
_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), _SHARE)
_COMMON: dict[str, Rule] = {
    "architectures": _list(_TEXT, 1, 1),
    "dtype": _one_of("float32"),
    "initializer_range": _number(0, 100),
    "label2id": Rule(lambda value: isinstance(value, dict), "the labels by name"),
    "problem_type": _or_null(_one_of("single_label_classification")),
    "transformers_version": _TEXT,
}
_BACKBONE: dict[str, Rule] = {
    "apply_layernorm": _FLAG,
    "drop_path_rate": _SHARE,
    "layerscale_value": _number(-100, 100),
    "out_features": _list(_TEXT, 0, _MOST_LAYERS + 1),
    "out_indices": _list(_whole(-_MOST_LAYERS, _MOST_LAYERS), 0, _MOST_LAYERS + 1),
    "reshape_hidden_states": _FLAG,
    "stage_names": _list(_TEXT, 1, _MOST_LAYERS + 1),
}
_DINOV2 = _BACKBONE | _DROPOUT
_DINOV2 |= {"mlp_ratio": _whole(1, 64), "qkv_bias": _FLAG, "use_mask_token": _FLAG, "use_swiglu_ffn": _FLAG}
_WIDE = {"intermediate_size": _whole(1, 2**17)}
_REGISTERS = {"num_register_tokens": _whole(0, 256)}
_OF_TYPE: dict[str, dict[str, Rule]] = {
    "vit": _DROPOUT
    | _WIDE
    | {
        "encoder_stride": _whole(1, 4096),
        "pooler_act": _TEXT,
        "pooler_output_size": _or_null(_whole(1, 2**14)),
        "qkv_bias": _FLAG,
    },
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2 | _REGISTERS,
    "dinov3_vit": _BACKBONE
    | _WIDE
    | _REGISTERS
    | _ROPE
    | dict.fromkeys(("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"), _FLAG)
    | dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), _or_null(_number(0, 100)))
    | {"attention_dropout": _SHARE},
}
_CLASSES = {
    "vit": "ViTForImageClassification",
    "dinov2": "Dinov2ForImageClassification",
    "dinov2_with_registers": "Dinov2WithRegistersForImageClassification",
    "dinov3_vit": "DINOv3ViTForImageClassification",
}
# Keys that backbones on the Hub carry and no class of transformers reads. Older exports passed them on.
_IDLE = dict.fromkeys(("_name_or_path", "finetuning_task"), _or_null(_TEXT))
_IDLE |= {"torch_dtype": _one_of("float32"), "interpolate_antialias": _FLAG, "interpolate_offset": _number(-1, 1)}

_CHANNELS = "one number for each of three channels"
_PROCESSOR: dict[str, Rule] = {
    "image_processor_type": _one_of("ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil"),
    "do_convert_rgb": _one_of(True),
    "do_resize": _one_of(True),
    "do_rescale": _one_of(True),
    "do_normalize": _one_of(True),
    "image_mean": Rule(_list(_number(-1, 2), 3, 3).holds, f"{_CHANNELS}, from -1 to 2"),
    "image_std": Rule(_list(_number(1e-3, 10), 3, 3).holds, f"{_CHANNELS}, from 0.001 to 10"),
    "resample": _one_of(3),
    "rescale_factor": Rule(lambda value: type(value) is float and math.isclose(value, 1 / 255), "1/255"),
    "size": Rule(lambda value: isinstance(value, dict) and set(value) == {"height", "width"}, "a height and a width"),
}


def config_keys(model_type: str) -> set[str]:
    """The keys that an exported `config.json` of an architecture may hold."""
    return {*_NEEDED, *_COMMON, *_OF_TYPE[model_type]}


def processor_keys() -> set[str]:
    """The keys that an exported `preprocessor_config.json` holds."""
    return set(_PROCESSOR)


def config_faults(content: Any) -> Iterator[str]:
    """What no exported `config.json` holds, one line for each fault."""
    kind = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(content, dict):
        yield "it holds no JSON object"
    elif not isinstance(kind, str) or kind not in ARCHITECTURES:
        yield f"model_type is {cut(kind)}: it must be {_NEEDED['model_type'].allowed}"
    else:
        needed = _NEEDED | (_ROPE if "rope_theta" in _OF_TYPE[kind] else {})
        found = list(_faults(content, needed, _COMMON | _OF_TYPE[kind] | _IDLE))
        yield from found or _config_disagreements(content, kind)


def _config_disagreements(content: dict[str, Any], kind: str) -> Iterator[str]:
    width, heads = content["hidden_size"], content["num_attention_heads"]
    if width % heads:
        yield f"hidden_size is {width}: it must be a multiple of num_attention_heads, {heads}"
    if content.get("architectures", [_CLASSES[kind]]) != [_CLASSES[kind]]:
        yield f"architectures is {cut(content['architectures'])}: it must be {[_CLASSES[kind]]}"
    stages = ["stem", *(f"stage{layer}" for layer in range(1, content["num_hidden_layers"] + 1))]
    if content.get("stage_names", stages) != stages:
        yield "stage_names are not those of its layers"
    features, indices = content.get("out_features", stages[-1:]), content.get("out_indices", [len(stages) - 1])
    if any(not -len(stages) <= index < len(stages) for index in indices) or features != [stages[i] for i in indices]:
        yield "out_features and out_indices are not of its layers"
    with suppress(UsageError):  # whoever reads the names says so
        names = names_in(content["id2label"])
        if content.get("label2id", names.label2id) != names.label2id:
            yield f"label2id is {cut(content['label2id'])}, and id2label is {cut(content['id2label'])}"


def processor_faults(content: Any, model: dict[str, Any] | None = None) -> Iterator[str]:
    """What no exported `preprocessor_config.json` holds, one line for each fault.

    Args:
        model: The content of a `config.json` without faults, whose model must be able to take the images.
    """
    if not isinstance(content, dict):
        yield "it holds no JSON object"
        return
    found = list(_faults(content, _PROCESSOR, {}))
    yield from found or size_faults(content["size"], model)


def size_faults(size: dict[str, Any], model: dict[str, Any] | None) -> Iterator[str]:
    """What no exported processor has as `size`, or what the model of a `config.json` cannot take."""
    height, side = size["height"], _whole(1, LARGEST_IMAGE)
    if not side.holds(height) or not side.holds(size["width"]) or height != size["width"]:
        yield f"size is {cut(size)}: it must be a square in px, each side {side.allowed}"
        return
    if model is None:
        return
    patch = model["patch_size"]
    if height % patch or (height // patch) ** 2 > MOST_PATCHES:
        most = f"of at most {MOST_PATCHES:,} patches"
        yield f"size is {cut(size)}: it must be a multiple of the patch size, {patch}, {most}"
    elif has_fixed_size(model["model_type"]) and height != model["image_size"]:
        yield f"size is {cut(size)}, and the model takes images of {model['image_size']} px"


def _faults(content: dict[str, Any], needed: dict[str, Rule], other: dict[str, Rule]) -> Iterator[str]:
    for key, value in content.items():
        rule = needed.get(key) or other.get(key)
        if rule is None:
            yield f"it has the key {cut(key)}, which no exported file has"
        elif not rule.holds(value):
            yield f"{key} is {cut(value)}: it must be {rule.allowed}"
    yield from (f"it has no {key}" for key in needed if key not in content)
