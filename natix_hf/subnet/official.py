"""What is known of the official miner: versions, files, keys. Read in its public repository, never run here.

Source: github.com/natixnetwork/streetvision-subnet, v2.0.4 of January 2026, looked at in a copy in November 2026.
Files may have changed since, so whatever of a checkout differs from this is named, not guessed at.
"""

from __future__ import annotations

TRANSFORMERS, TORCH = "4.45.2", "2.6"
IMAGE_SIZE = 224  # px, of every picture that a validator sends
TIMEOUT_S = 9.0
NETUIDS = {"72": "finney", "323": "test"}  # of the main network and of the test network
SERVER = "https://hydra.natix.network"  # where register.sh registers

# The file that names the model, its keys, and the values that stay as they are.
DETECTOR_CONFIG = "ViT_roadwork.yaml"
REPOSITORY_KEY = "hf_repo"
DETECTOR_KEYS = {REPOSITORY_KEY: None, "config_name": "config.yaml", "weights": "model.safetensors"}

# `miner.env`, which `start_miner.sh` reads. None: any value, but one.
ENVIRONMENT, PORT_KEY = "miner.env", "MINER_AXON_PORT"
ENVIRONMENT_KEYS: dict[str, tuple[str, ...] | None] = {
    "IMAGE_DETECTOR": ("ViT",),
    "IMAGE_DETECTOR_CONFIG": (DETECTOR_CONFIG,),
    "IMAGE_DETECTOR_DEVICE": ("cpu", "cuda", "auto"),
    "NETUID": tuple(NETUIDS),
    "SUBTENSOR_NETWORK": None,
    "SUBTENSOR_CHAIN_ENDPOINT": None,
    "WALLET_NAME": None,
    "WALLET_HOTKEY": None,
    PORT_KEY: None,
    "BLACKLIST_FORCE_VALIDATOR_PERMIT": None,
    "MODEL_URL": None,
}

# What the code of the detector says where it reads and loads what we promise.
DETECTOR_CODE = "vit_detector.py"
DETECTOR_FACTS = ("ViT", "AutoModelForImageClassification", "AutoImageProcessor", "use_fast=True", "Roadwork")

REGISTER = "register.sh"

# Each `model_type` for which transformers 4.45.2 has an image-classification class, from that release's
# transformers/models/auto/modeling_auto.py, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.
CLASSIFIERS = frozenset(
    "beit bit clip convnext convnextv2 cvt data2vec-vision deit dinat dinov2 efficientformer efficientnet focalnet "
    "hiera imagegpt levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 nat perceiver poolformer pvt pvt_v2 regnet "
    "resnet segformer siglip swiftformer swin swinv2 van vit vit_hybrid vit_msn".split()
)
# The only processor that the miner's call (`use_fast=True`) finds a fast class for in that release.
PROCESSORS = ("ViTImageProcessor", "ViTImageProcessorFast")


def register_call(repo_id: str, arguments: int = 6) -> str:
    """The call that registers a miner, with placeholders for what only the miner knows.

    Args:
        arguments: How many arguments the script takes for a miner: 5, or 6 with the address of the server.
    """
    server = f" {SERVER}" if arguments == 6 else ""
    return f"./{REGISTER} UID WALLET_NAME HOTKEY_NAME miner {repo_id}{server}"


def size_line(image_size: int) -> str:
    """Why a model of another size than the subnet's pictures answers otherwise in the miner's box."""
    return (
        f"the model takes {image_size} px and a validator sends {IMAGE_SIZE}: the official miner resizes with "
        "torchvision, whose pixels differ (they moved logits of a 48 px model by up to 0.05), so that answers near "
        f"the threshold flip: train with model.image_size={IMAGE_SIZE}"
    )
