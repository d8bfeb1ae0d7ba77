"""The page at `/`: try the server in a browser. It loads nothing from anywhere else."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from functools import cache
from html import escape
from typing import Any

from PIL import Image

from natix_hf.resources import resource_folder
from natix_hf.serve.limits import Limits


@cache
def example_base64() -> str:
    """A small picture, for examples that work when they are sent."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((16, 16)).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@cache
def _template() -> str:
    return (resource_folder("model_cards") / "serve.html").read_text(encoding="utf-8")


def _hash(kind: str) -> str:
    [content] = re.findall(rf"<{kind}>(.*?)</{kind}>", _template(), re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode('ascii')}'"


def page(policy: dict[str, Any], limits: Limits, asks_token: bool) -> str:
    """The page, with the facts of this server."""
    facts = {
        "YES": policy["labels"]["yes"],
        "NO": policy["labels"]["no"],
        "THRESHOLD": f"{policy['threshold']:.3f}",
        "PROMISE": policy["promise"]["in_words"].rstrip("."),
        "LIMITS": f"At most {limits.images} pictures and {limits.megabytes:g} MB in a request, "
        f"{limits.megapixels:g} megapixels in a picture",
        "EXAMPLE": example_base64(),
        "HIDDEN": "" if asks_token else "hidden",
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: escape(str(facts[found[1]])), _template())


PAGE_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
    f"style-src {_hash('style')}; script-src {_hash('script')}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}
