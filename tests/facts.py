"""What a message must tell, whatever its wording."""

from __future__ import annotations


def tells(message: object, *facts: object) -> bool:
    """Whether every fact (a key, a value, a file, a way out) stands in a message of one line."""
    text = str(message)
    missing = [str(fact) for fact in facts if str(fact) not in text]
    assert not missing, f"{missing} is not in: {text}"
    assert "\n" not in text, f"more than one line: {text}"
    return True
