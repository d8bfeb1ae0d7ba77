"""The names of the two answers and the question that they answer.

The names come from `data.labels`, or from a Trainer's model. A model's `config.json` stores them, and everything after
the training reads them there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from natix_hf.errors import UsageError, VerificationError
from natix_hf.provenance.files import read_json
from natix_hf.section import OF_DATA, Section

ABSTAIN = "abstain"  # the decision where an answer is not accepted
_LONGEST = 60  # characters
_SUBNET_QUESTION = "Is there roadwork in this picture?"


@dataclass(frozen=True)
class LabelNames(Section):
    """The names of the two answers. The subnet's official miner reads the label `Roadwork` and no other."""

    place: ClassVar[str] = "data.labels"

    no: Annotated[str, "Name of label 0, the answer no.", OF_DATA] = "None"
    yes: Annotated[str, "Name of label 1, the answer yes.", OF_DATA] = "Roadwork"

    def check(self) -> None:
        for key in ("no", "yes"):
            name = getattr(self, key)
            plain = name == name.strip() and name.isprintable() and 1 <= len(name) <= _LONGEST
            self.require(plain, key, f"one line of 1 to {_LONGEST} characters without spaces around it")
            self.require(name.lower() != ABSTAIN, key, f"another name: {ABSTAIN} is the answer that is not accepted")
        self.require(self.no.lower() != self.yes.lower(), "yes", f"another name than that of no, {self.no!r}")

    @property
    def of_subnet(self) -> bool:
        """True for the names that the subnet asks for."""
        return self == SUBNET

    @property
    def id2label(self) -> dict[int, str]:
        """The names by label, as transformers holds them."""
        return {0: self.no, 1: self.yes}

    @property
    def label2id(self) -> dict[str, int]:
        """The labels by name, as transformers holds them."""
        return {self.no: 0, self.yes: 1}

    @property
    def question(self) -> str:
        """The question where the recipe gives none."""
        return _SUBNET_QUESTION if self.of_subnet else f"{self.yes[:1].upper()}{self.yes[1:]} or {self.no}?"

    def name(self, positive: bool) -> str:
        """The name of an answer."""
        return self.yes if positive else self.no


SUBNET = LabelNames()


def names_in(id2label: Any) -> LabelNames:
    """The names in the `id2label` of a model's config, whose keys are numbers in Python and text in JSON.

    Raises:
        UsageError: if it does not name two answers, or if a name cannot be used.
    """
    named = {str(label): name for label, name in id2label.items()} if isinstance(id2label, dict) else {}
    if set(named) != {"0", "1"} or not all(isinstance(name, str) for name in named.values()):
        raise UsageError(f"id2label is {str(id2label)[:80]}: it must name the labels 0 and 1")
    return LabelNames(no=named["0"], yes=named["1"])


def stored_names(model: Path) -> LabelNames:
    """The names in the `config.json` of a model folder.

    Raises:
        VerificationError: if the file is missing or damaged, or does not name two answers.
    """
    path = model / "config.json"
    content = read_json(path)
    try:
        return names_in(content.get("id2label") if isinstance(content, dict) else None)
    except UsageError as error:
        raise VerificationError(f"{path} does not name the answers: {error}") from None
