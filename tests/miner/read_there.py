"""What a bundle's own `read_policy.py` answers in a miner's box: `python -I read_there.py BUNDLE`, values on stdin.

Prints, as JSON, its answers to logits, to scores of yes, and to lists as a pipeline gives them, and which of the
package's libraries were imported for that.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

bundle = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("read_policy", bundle / "read_policy.py")
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["read_policy"] = module  # dataclasses look their module up
spec.loader.exec_module(module)
policy = module.read_policy(bundle / "policy.json")
asked = json.load(sys.stdin)


def plain(answer: Any) -> dict[str, Any]:
    found = {name: getattr(answer, name) for name in ("probability", "label", "accepted", "decision")}
    return {name: value.tolist() for name, value in found.items()} | {"threshold": answer.threshold}


answers = {
    "logits": plain(policy.predict(asked["logits"], probabilities=False)),
    "scores": plain(policy.predict(asked["scores"], probabilities=True)),
    "lists": plain(policy.predict(asked["lists"])),
}
heavy = sorted(
    {"torch", "transformers", "natix_hf", "scipy", "PIL"} & {name.partition(".")[0] for name in sys.modules}
)
print(json.dumps({"answers": answers, "heavy": heavy, "python": sys.version_info[:2]}))
