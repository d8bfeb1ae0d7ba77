"""Finds the recipes, accelerate configs, templates and generated docs that come with the package.

They live at the top of the checkout and are copied into the wheel; an editable install uses the checkout's folder.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parent / "_packaged"
_CHECKOUT = Path(__file__).resolve().parent.parent


def resource_folder(name: str) -> Path:
    """The folder `recipes`, `accelerate_configs`, `model_cards` or `docs` (a wheel holds its generated pages).

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for root in (_PACKAGED, _CHECKOUT):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"natix_hf is installed without its {name}/ folder: install it again")
