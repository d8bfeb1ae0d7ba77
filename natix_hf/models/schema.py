"""What `config.json` and `preprocessor_config.json` of an exported model may hold: every key, its type and its range.

Both files come from strangers, and every value in them can change an answer or a machine's memory. So a key that this
module does not know is refused, and a size has a bound before anything is made of it. That sizes fit the weights is
the work of `natix_hf.models.fits`. An architecture needs no row here: the fields of its config class are its keys.
`natix_hf.models.fields` has those of each, so that neither torch nor transformers is needed to check a bundle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from natix_hf.errors import UsageError, cut
from natix_hf.labels import names_in
from natix_hf.models.architectures import ARCHITECTURES, has_fixed_size, size_step
from natix_hf.models.fields import FIELDS

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


def _or_zero(rule: Rule) -> Rule:
    return Rule(lambda value: (type(value) is int and value == 0) or rule.holds(value), f"0 or {rule.allowed}")


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
_MOST_STAGES = 8
_LARGEST_WINDOW = 32  # patches; the index of its pairs takes 8 MB in every block
_MOST_ATTENDED = 2**28  # values of one layer's attention within windows: 1 GB
_HEAD = "ForImageClassification"
_DECISIVE = ("rope_theta",)  # needed too, where an architecture has it
# What decides an answer and is seen in no tensor's shape, or is needed to make the model: it may not be left to the
# defaults of whoever loads the file.
_NEEDED: dict[str, Rule] = {
    "model_type": Rule(lambda value: isinstance(value, str) and value in ARCHITECTURES, "a supported architecture"),
    "hidden_act": _one_of(*_ACTIVATIONS),
    "layer_norm_eps": _number(0, 1),
    "image_size": _whole(1, 2 * LARGEST_IMAGE),
    "patch_size": _whole(1, 512),
    "num_channels": _one_of(3),
    "id2label": Rule(lambda value: True, "the names of the labels 0 and 1"),  # compared with the policy's
}
# Needed too, where the config class has the field: of a model whose blocks stand in one row, and of one in stages.
_ROW: dict[str, Rule] = {
    "hidden_size": _whole(1, 2**14),
    "num_hidden_layers": _whole(1, _MOST_LAYERS),
    "num_attention_heads": _whole(1, 2**10),
}
_STAGES: dict[str, Rule] = {
    "depths": _list(_whole(1, _MOST_LAYERS), 1, _MOST_STAGES),
    "hidden_sizes": _list(_whole(1, 2**14), 1, _MOST_STAGES),
    "num_stages": _whole(1, _MOST_STAGES),
    "embed_dim": _whole(1, 2**14),
    "num_heads": _list(_whole(1, 2**10), 1, _MOST_STAGES),
    "window_size": _whole(1, _LARGEST_WINDOW),
    "pretrained_window_sizes": _list(_or_zero(_whole(2, _LARGEST_WINDOW)), 1, _MOST_STAGES),  # 1 would give NaN
}
_COMMON: dict[str, Rule] = {
    "architectures": Rule(
        lambda value: isinstance(value, list) and len(value) == 1 and str(value[0]).endswith(_HEAD),
        f"the name of one class, which ends with {_HEAD}",
    ),
    "dtype": _one_of("float32"),
    "label2id": Rule(lambda value: isinstance(value, dict), "the labels by name"),
    "problem_type": _or_null(_one_of("single_label_classification")),
    "transformers_version": _TEXT,
}
_STAGE_NAMES = _list(_TEXT, 0, _MOST_LAYERS + 1)
# The fields of the architectures that need a closer range than their type gives.
_OWN: dict[str, Rule] = {
    "initializer_range": _number(0, 100),
    "intermediate_size": _whole(1, 2**17),
    "layerscale_value": _number(-100, 100),
    "mlp_ratio": _whole(1, 64),
    "num_layers": _whole(1, _MOST_STAGES),
    "num_register_tokens": _whole(0, 256),
    "out_features": _STAGE_NAMES,
    "out_indices": _list(_whole(-_MOST_LAYERS, _MOST_LAYERS), 0, _MOST_LAYERS + 1),
    "pooler_output_size": _or_null(_whole(1, 2**14)),
    "rope_theta": _number(1e-3, 1e9),
    "stage_names": _STAGE_NAMES,
} | dict.fromkeys(("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"), _or_null(_number(0, 100)))
_OWN |= dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "drop_path_rate"), _SHARE
)
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


@functools.lru_cache
def _own_rules(model_type: str) -> dict[str, Rule]:
    """The rules of the fields that the config class of an architecture has and others have not."""
    if model_type not in FIELDS:
        return _rules_of_class(model_type)
    return _rules({name: kind for kind, names in FIELDS[model_type].items() for name in names.split()}, model_type)


@functools.lru_cache
def _rules_of_class(model_type: str) -> dict[str, Rule]:
    """The same by the class of the transformers that is installed; without it, no rules."""
    try:
        kinds = kinds_of_class(model_type)
    except ImportError:
        return {}
    return _rules(kinds, model_type)


def kinds_of_class(model_type: str) -> dict[str, str]:
    """The fields that the config class of an architecture has and others have not, by the kind of their defaults."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    of_all, default = PreTrainedConfig().to_dict(), CONFIG_MAPPING[model_type]().to_dict()
    return {key: _kind(value) for key, value in default.items() if key not in of_all}


def _kind(default: Any) -> str:
    kinds = {bool: "flag", int: "whole", str: "text", list: "list", float: "number"}
    return kinds.get(type(default), "number or null")


def _rules(kinds: dict[str, str], model_type: str) -> dict[str, Rule]:
    closer = _OWN | _shape(model_type)
    if kinds.get("mlp_ratio") == "number":
        closer["mlp_ratio"] = _number(1, 64)
    return {key: closer.get(key) or _OF_KIND[kind] for key, kind in kinds.items()}


def _shape(model_type: str) -> dict[str, Rule]:
    return _STAGES if ARCHITECTURES[model_type].stages else _ROW


def _needed(model_type: str) -> dict[str, Rule]:
    """The rules of the keys that no exported `config.json` of an architecture lacks."""
    decisive = (*_shape(model_type), *_DECISIVE)
    return _NEEDED | {key: rule for key, rule in _own_rules(model_type).items() if key in decisive}


# The rule of a field by the kind of its default. A list needs one of its own.
_OF_KIND: dict[str, Rule] = {
    "flag": _FLAG,
    "whole": _whole(0, 2**17),
    "text": _TEXT,
    "number": _number(-1e6, 1e6),
    "list": _number(-1e6, 1e6),
    "number or null": _or_null(_number(-1e6, 1e6)),
}


def config_keys(model_type: str) -> set[str]:
    """The keys that an exported `config.json` of an architecture may hold."""
    return {*_NEEDED, *_COMMON, *_own_rules(model_type), *_rules_of_class(model_type)}


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
        known = _COMMON | _IDLE | _own_rules(kind)
        if any(key not in known and key not in _NEEDED for key in content):  # of a later transformers
            known = _rules_of_class(kind) | known
        found = list(_faults(content, _needed(kind), known))
        yield from found or _config_disagreements(content)


def _config_disagreements(content: dict[str, Any]) -> Iterator[str]:
    depths = content.get("depths")
    if depths is None:
        width, heads = content["hidden_size"], content["num_attention_heads"]
        if width % heads:
            yield f"hidden_size is {width}: it must be a multiple of num_attention_heads, {heads}"
    else:
        yield from _stage_disagreements(content, depths)
    stages = stage_names(content["num_hidden_layers"] if depths is None else len(depths))
    if content.get("stage_names", stages) != stages:
        yield "stage_names are not those of its layers"
    features, indices = content.get("out_features", stages[-1:]), content.get("out_indices", [len(stages) - 1])
    if any(not -len(stages) <= index < len(stages) for index in indices) or features != [stages[i] for i in indices]:
        yield "out_features and out_indices are not of its layers"
    with suppress(UsageError):  # whoever reads the names says so
        names = names_in(content["id2label"])
        if content.get("label2id", names.label2id) != names.label2id:
            yield f"label2id is {cut(content['label2id'])}, and id2label is {cut(content['id2label'])}"


def _stage_disagreements(content: dict[str, Any], depths: list[int]) -> Iterator[str]:
    if number_of_blocks(content) > _MOST_LAYERS:
        yield f"depths is {cut(depths)}: it must be at most {_MOST_LAYERS} blocks in all"
    counts: dict[str, int] = {key: content[key] for key in ("num_stages", "num_layers") if key in content}
    counts |= {key: len(content[key]) for key in _STAGES if isinstance(content.get(key), list)}
    for key, count in counts.items():
        if count != len(depths):
            yield f"{key} is {cut(content[key])}, and depths has {len(depths)} stages"
            return
    if "embed_dim" in content:  # it doubles in each stage
        widths = [content["embed_dim"] * 2**stage for stage in range(len(depths))]
        if any(width % heads for width, heads in zip(widths, content["num_heads"], strict=True)):
            yield f"num_heads is {cut(content['num_heads'])}: each must divide the width of its stage, {cut(widths)}"
        if content.get("hidden_size", widths[-1]) != widths[-1]:
            yield f"hidden_size is {content['hidden_size']}: it must be the width of the last stage, {widths[-1]}"


def number_of_blocks(content: dict[str, Any]) -> int:
    """The number of blocks of the model of a `config.json` without faults."""
    depths = content.get("depths")
    return int(sum(depths) if depths is not None else content["num_hidden_layers"])


def stage_names(layers: int) -> list[str]:
    """The names that transformers gives to the embeddings and the layers of a model, which `out_features` refer to."""
    return ["stem", *(f"stage{layer}" for layer in range(1, layers + 1))]


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
    patch, depths = model["patch_size"], model.get("depths")
    step, patches = size_step(patch, depths), (height // patch) ** 2
    if height % step or patches > MOST_PATCHES:
        what = f"the patch size, {patch}" if step == patch else f"{step}"
        yield f"size is {cut(size)}: it must be a multiple of {what}, of at most {MOST_PATCHES:,} patches"
    elif any(
        patches // 4**stage * model["window_size"] ** 2 * heads > _MOST_ATTENDED
        for stage, heads in enumerate(model.get("num_heads", ()))
    ):
        yield f"window_size is {model['window_size']}: the windows of {cut(size)} would attend to too many patches"
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
