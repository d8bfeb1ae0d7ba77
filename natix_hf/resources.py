"""Where to find the recipes, accelerate configs, templates and generated docs that come with the package.

They lie at the top of the checkout. The wheel holds a copy; an editable install reads the checkout.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parent / "_packaged"
_CHECKOUT = Path(__file__).resolve().parent.parent


def resource_folder(name: str) -> Path:
    """The folder `recipes`, `accelerate_configs`, `model_cards` or `docs` (a wheel holds its generated pages).

    Raises:
        FileNotFoundError: if the installation is incomplete.
    """
    for root in (_PACKAGED, _CHECKOUT):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"the installation of natix_hf lacks its {name}/ folder: install it again")
