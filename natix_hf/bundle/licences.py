"""What a model card may state for the Hub beside figures: a licence, and public pictures for the Hub's widget.

A licence is the user's to state, and is never guessed. This module imports nothing heavy.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# The Hub refuses a card with another one (https://huggingface.co/docs/hub/repositories-licenses). What is younger than
# this list can be stated as `other` with a name and a link.
LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
    unknown other
    """.split()
)
OTHER = "other"
KNOWN = f"an identifier of the Hub, such as apache-2.0 or cc-by-4.0, or {OTHER} with phase6.license_name and a link"


def is_licence_name(text: str) -> bool:
    """Check a name for a licence that the Hub has no identifier for."""
    return re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,95}", text, re.ASCII) is not None


def is_public_address(text: str) -> bool:
    """Check that a text can be the address of something public: https, a host with a domain, and nothing in it that
    may be a secret: no user name, no query, no fragment."""
    if not text.isascii() or not text.isprintable() or " " in text or len(text) > 500:
        return False
    try:
        parts = urlsplit(text)
        named = parts.hostname or ""
        port = parts.port
    except ValueError:
        return False
    if parts.scheme != "https" or "@" in parts.netloc or port is not None or "?" in text or "#" in text:
        return False
    return re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", named) is not None and len(parts.path) > 1
