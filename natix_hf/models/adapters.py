"""The adapters by name: every tuner of PEFT that merges into a plain vision transformer, and DoRAN.

Light: checking a recipe against the names imports neither torch nor PEFT.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from natix_hf.errors import RecipeError, cut, did_you_mean, first_line, require
from natix_hf.models.targets import LAST, LAYERS, common_width, ends_in, names_in_option, target_modules

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AdapterKind:
    """One row of the table.

    Attributes:
        config (`str`): Name of the config class in PEFT, or `module:name` of one that is not PEFT's.
        defaults (`dict`): Options whose default here differs from PEFT's.
        divisors (`dict`):
            Options that must divide every width of the adapted modules, with their upper bounds: the largest divisor
            within the bound is the default.
        targets (`tuple` of `str`):
            Last parts of the names of the adapted modules, without the numbers of blocks and stages.
        options (`tuple` of `str`): The fields of the config class that may be set. Empty: all.
        note (`str`): What the method does, and its source.
        in_bake_off (`bool`): `adapter: auto` compares it with the others.
        not_on (`dict`): Architectures that it is refused on, with the reason.
    """

    config: str
    defaults: dict[str, Any] = field(default_factory=dict)
    divisors: dict[str, int] = field(default_factory=dict)
    targets: tuple[str, ...] = LAYERS
    options: tuple[str, ...] = ()
    note: str = ""
    in_bake_off: bool = False
    not_on: dict[str, str] = field(default_factory=dict)


_WIDTHS = "it shares one matrix among the layers of a name, whose widths differ from stage to stage"
_MAPS = "its code takes the maps of height and width that these layers read for something else"
AUTO = "auto"  # the winner of a bake-off, see trainers/bakeoff.py
_AUTO_OPTIONS = ("r", "target_modules")
_LORA = {"r": 8, "lora_alpha": 8}
_TAU = (1e-6, 1e3)  # where DoRAN's τ may start
ADAPTERS: dict[str, AdapterKind] = {
    "lora": AdapterKind("LoraConfig", _LORA, note="low-rank update, arXiv 2106.09685", in_bake_off=True),
    "dora": AdapterKind(
        "LoraConfig",
        {**_LORA, "use_dora": True},
        note="trains magnitude and direction apart, 2402.09353",
        in_bake_off=True,
    ),
    "rslora": AdapterKind(
        "LoraConfig", {**_LORA, "use_rslora": True}, note="LoRA scaled by the root of r, 2312.03732"
    ),
    "pissa": AdapterKind(
        "LoraConfig",
        {**_LORA, "init_lora_weights": "pissa"},
        note="starts from the largest singular vectors and subtracts them from the base, 2404.02948",
    ),
    "adalora": AdapterKind(
        "AdaLoraConfig",
        {"init_r": 12, "target_r": 8, "lora_alpha": 12},
        note="moves rank to the layers that need it, 2303.10512",
        in_bake_off=True,
    ),
    "adamss": AdapterKind("AdamssConfig"),
    "beft": AdapterKind("BeftConfig", note="trains biases only"),
    "boft": AdapterKind(
        "BOFTConfig", {"boft_block_num": 0}, {"boft_block_size": 4}, note="butterfly-factorised rotations, 2311.06243"
    ),
    "c3a": AdapterKind("C3AConfig", divisors={"block_size": 64}, note="circular convolution, 2407.19342"),
    "deft": AdapterKind("DeftConfig"),
    "delora": AdapterKind(
        "DeloraConfig", {"r": 8, "delora_lambda": 8}, note="trains angle and strength apart, 2503.18225"
    ),
    "doran": AdapterKind(
        "natix_hf.models.doran:DoranConfig",
        {**_LORA, "tau": 0.1},
        options=("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "tau"),
        note="DoRA with a learnable term in the denominator, 2510.04331; without the paper's shared networks",
    ),
    "fourierft": AdapterKind("FourierFTConfig", {"n_frequency": 500}, note="a sparse Fourier spectrum, 2405.03003"),
    "frod": AdapterKind("FrodConfig", not_on={"convnextv2": _WIDTHS, "swinv2": _WIDTHS}),
    "glora": AdapterKind("GloraConfig", note="2306.07967"),
    "gralora": AdapterKind(
        "GraloraConfig",
        {"r": 8, "gralora_k": 2},
        note="block-wise LoRA, 2505.20355",
        not_on={"convnextv2": _MAPS},
    ),
    "hira": AdapterKind("HiraConfig", {"r": 8}),
    "hra": AdapterKind("HRAConfig", {"r": 8}, note="Householder reflections, 2405.17484"),
    "ia3": AdapterKind(
        "IA3Config",
        {"feedforward_modules": LAST},
        targets=("k_proj", "v_proj", "key", "value", *LAST),
        note="scales activations, 2205.05638",
    ),
    "ln_tuning": AdapterKind(
        "LNTuningConfig",
        targets=("norm1", "norm2", "layernorm_before", "layernorm_after", "layers.layernorm"),
        note="trains the norms only, 2312.11420",
    ),
    "loha": AdapterKind(
        "LoHaConfig", {"r": 8, "alpha": 8}, note="Hadamard product of two low-rank updates, 2108.06098"
    ),
    "lokr": AdapterKind("LoKrConfig", {"r": 8, "alpha": 8}, note="Kronecker product, 2309.14859", in_bake_off=True),
    "miss": AdapterKind("MissConfig", divisors={"r": 64}, note="2409.15371"),
    "oft": AdapterKind(
        "OFTConfig", {"r": 0}, {"oft_block_size": 32}, note="rotations, 2306.07280", not_on={"convnextv2": _MAPS}
    ),
    "osf": AdapterKind("OSFConfig", note="decomposes the base and trains the part orthogonal to it, 2504.07097"),
    "peanut": AdapterKind("PeanutConfig"),
    "psoft": AdapterKind("PsoftConfig", {"r": 8}),
    "pvera": AdapterKind("PveraConfig", {"r": 32}),
    "randlora": AdapterKind("RandLoraConfig", {"r": 8}, note="random bases, 2502.00987"),
    "road": AdapterKind(
        "RoadConfig", divisors={"group_size": 64}, note="rotations in two-dimensional planes, 2409.00119"
    ),
    "shira": AdapterKind("ShiraConfig", {"r": 8}, note="trains a sparse subset of the weights, 2406.13175"),
    "supertuning": AdapterKind("SupertuningConfig"),
    "tinylora": AdapterKind("TinyLoraConfig"),
    "unilora": AdapterKind("UniLoraConfig"),
    "vblora": AdapterKind(
        "VBLoRAConfig", {"topk": 2, "r": 4}, {"vector_length": 64}, note="a bank of vectors, 2405.15179"
    ),
    "vera": AdapterKind("VeraConfig", {"r": 64}, note="shared random LoRA, 2310.11454"),
    "waveft": AdapterKind("WaveFTConfig", {"n_frequency": 500}, note="sparse wavelet coefficients, 2505.12532"),
}
_PROMPTS = "it adds tokens to the input of a language model, and a merged ViT has no place for them"
REFUSED: dict[str, str] = {
    "lily": "PEFT cannot merge it: layers share parts of it",
    "poly": "it mixes adapters by task, so it cannot be merged",
    "shadow": "it keeps a second model beside the base, so it cannot be merged",
    "xlora": "it mixes adapters by input, so it cannot be merged",
    "trainable_tokens": "a ViT has no vocabulary",
    "cartridge": _PROMPTS,
    "cpt": _PROMPTS,
    "adaption_prompt": _PROMPTS,
    "prompt_tuning": _PROMPTS,
    "prefix_tuning": _PROMPTS,
    "p_tuning": _PROMPTS,
    "multitask_prompt_tuning": _PROMPTS,
}
# Options that the toolkit sets itself, or with which the merged model would not be the trained one.
_OWN_OPTIONS = {
    "modules_to_save": "the classifier layer is always trained beside the adapter",
    "bias": "merged biases would stay when the adapter is switched off",
    "task_type": "it is set for you",
    "peft_type": "the key adapter names it",
    "inference_mode": "the adapter must be trainable",
    "total_step": "it follows from the length of the training",
    "alora_invocation_tokens": "a ViT has no vocabulary, and PEFT cannot merge aLoRA",
    "trainable_token_indices": "a ViT has no vocabulary",
    "target_parameters": "adapters are put on modules: name them in target_modules",
    # PEFT ignores these two if modules are given by their full names, as they are here.
    "layers_to_transform": "name the modules of those layers in target_modules",
    "layers_pattern": "name the modules of those layers in target_modules",
}
# Initialisations that need data. Without data, PEFT silently falls back to a plain one.
_FROM_DATA = ("eva", "lora_ga")
# The errors by which PEFT refuses a value that it cannot use, or trips over it.
_REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_adapter(name: str, options: dict[str, Any], where: str) -> None:
    """Refuse an adapter that is not in the table, and options that it does not have.

    Args:
        name (`str`): `"none"`, `"full"`, `"auto"` or a name in `ADAPTERS`.
        options (`dict`): The `adapter_options` of the recipe.
        where (`str`): The section of the recipe, for the error.

    Raises:
        [`RecipeError`]: one line with key, value, and the reason or what is allowed.
    """
    if name in ("none", "full"):
        if options:
            raise RecipeError(f"{where}.adapter_options needs an adapter of PEFT: adapter is {name}")
    elif name == AUTO:
        _check_auto(options, where)
    elif name in REFUSED:
        raise RecipeError(f"{where}.adapter is {cut(name)}, which is refused: {REFUSED[name]}")
    elif name not in ADAPTERS:
        known = ["none", "full", AUTO, *ADAPTERS]
        raise RecipeError(
            f"{where}.adapter is {cut(name, 40)}{did_you_mean(name, known)}: allowed is {' | '.join(known)}"
        )
    for option in options:
        if option in _OWN_OPTIONS:
            raise RecipeError(f"{where}.adapter_options.{option} is refused: {_OWN_OPTIONS[option]}")


def _check_auto(options: dict[str, Any], where: str) -> None:
    for option in options:
        if option not in _AUTO_OPTIONS:
            allowed = " and ".join(_AUTO_OPTIONS)
            raise RecipeError(f"unknown key {where}.adapter_options.{option} of auto: allowed is {allowed}")
    rank = options.get("r", 1)
    require(type(rank) is int and rank >= 1, f"{where}.adapter_options.r", rank, "a whole number of at least 1")


def add_adapter(
    model: PreTrainedModel, name: str, options: dict[str, Any], total_steps: int, seed: int, where: str = "phase1"
) -> PeftModel:
    """Put an adapter around a classifier. The adapter and the classifier layer are trained, the rest is frozen.

    Args:
        model (`PreTrainedModel`): Changed in place.
        name (`str`): A name in `ADAPTERS`.
        options (`dict`): Fields of the tuner's config class; they override the defaults of the table.
        total_steps (`int`): Optimizer steps of the training, which AdaLoRA's budget follows.
        seed (`int`): Seed of the adapter's initial weights.
        where (`str`, defaults to `"phase1"`): The section of the recipe, for errors.

    Returns:
        `PeftModel`: around `model`.

    Raises:
        [`RecipeError`]: an option is unknown, or a size does not fit the model.
    """
    import torch

    from natix_hf.models.classifier import head_of
    from natix_hf.models.tuner import wrap_with_tuner

    config = adapter_config(model, name, options, total_steps, where)
    torch.manual_seed(seed)
    try:
        wrapped = wrap_with_tuner(model, config)
    except _REFUSALS as error:
        raise _refused(error, name, where) from None
    # modules_to_save would merge just as well, but until the merge it hides the head in a wrapper, beside a frozen
    # copy of it. Here the head is one linear layer called `classifier` before, during and after training.
    head_of(model).requires_grad_(True)
    return wrapped


def adapter_config(
    model: PreTrainedModel, name: str, options: dict[str, Any], total_steps: int, where: str = "phase1"
) -> PeftConfig:
    """Make PEFT's configuration of an adapter for this model, which may be on the meta device.

    Args: As for [`add_adapter`].

    Raises:
        [`RecipeError`]: the adapter is not for this architecture, an option is unknown, PEFT refuses a value, or
            there is no such module.
    """
    kind = ADAPTERS[name]
    model_type = str(model.config.model_type)
    if model_type in kind.not_on:
        raise RecipeError(f"{where}.adapter is {name}, which is refused on a {model_type}: {kind.not_on[model_type]}")
    config_class: Any = resolve_name(kind.config if ":" in kind.config else f"peft:{kind.config}")
    known = sorted(kind.options or (f.name for f in dataclasses.fields(config_class)))
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known, otherwise=f": allowed is {', '.join(known)}")
            raise RecipeError(f"unknown key {where}.adapter_options.{option} of {config_class.__name__}{hint}")
    targets = target_modules(model, options.get("target_modules", kind.targets), where)
    settings = kind.defaults | {"target_modules": targets}
    if kind.divisors:
        width = common_width(model, targets)
        settings |= {key: _divisor(width, most) for key, most in kind.divisors.items()}
    if name == "adalora":
        settings["total_step"] = total_steps
    settings |= {key: value for key, value in options.items() if key != "target_modules"}
    final = settings.get("tfinal", 0)
    if name == "adalora" and isinstance(final, int) and total_steps - final < 2:  # PEFT 0.21: a KeyError in training
        raise RecipeError(
            f"{where}.adapter is 'adalora', which needs 2 steps before tfinal: training has {total_steps} steps and "
            f"{where}.adapter_options.tfinal is {final}"
        )
    if name == "doran":
        tau, (least, most) = settings["tau"], _TAU
        fits = type(tau) in (int, float) and least <= tau <= most
        require(fits, f"{where}.adapter_options.tau", tau, f"a number from {least} to {most}")
    if settings.get("init_lora_weights") in _FROM_DATA:
        key, value = f"{where}.adapter_options.init_lora_weights", settings["init_lora_weights"]
        raise RecipeError(
            f"{key} is {cut(value)}, which is refused: it needs data before training, and gets none here"
        )
    if "feedforward_modules" in settings:
        ends = names_in_option(settings["feedforward_modules"], f"{where}.adapter_options.feedforward_modules")
        settings["feedforward_modules"] = [name for name in targets if ends_in(name, ends)]
    try:
        config: PeftConfig = config_class(**settings)
    except _REFUSALS as error:
        raise _refused(error, name, where) from None
    return config


def _refused(error: Exception, name: str, where: str) -> RecipeError:
    return RecipeError(f"{where}.adapter_options: PEFT refuses these for {name} ({first_line(error)})")


def adapted_modules(model: PeftModel) -> list[str]:
    """List the names of the modules that the adapter changes, as the live model has them."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]


def _divisor(width: int, most: int) -> int:
    return next(number for number in range(min(width, most), 0, -1) if width % number == 0)
