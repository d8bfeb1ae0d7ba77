"""A soup among the candidates: what it is made of, and how it was chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from natix_hf.provenance.stored import OPTIONAL

SOUP = "soup"  # its name among the candidates, and its folder in that of phase 2
WISE_SHARES = 10  # WiSE-FT tries 0, 1/10, …, 1 of the trained backbone
SoupKind = Literal["uniform", "greedy", "wise"]


@dataclass(frozen=True)
class SoupMember:
    """A model that a soup could be made of.

    Args:
        name (`str`): Its folder in the run folder.
        candidate_sha256 (`str`): The hash of its weights.
        score (`float`): The objective of phase 2 on val_select, at its best threshold. Optimistic.
        weight (`float`): Its share in the soup; 0: it was not taken.
        run (`str`): The id of another run that it is from. None: it is of this run.
    """

    name: str
    candidate_sha256: str
    score: float
    weight: float
    run: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def told(self) -> str:
        return self.name if self.run is None else f"{self.name} of run {self.run}"

    def answers(self, folder: Path) -> Path:
        """The file in which phase 2, whose folder this is, keeps the member's answers on val_select, if its own phase
        did not leave them."""
        return member_answers(folder, self.name, self.run)


def member_answers(folder: Path, name: str, run: str | None) -> Path:
    """The file of `SoupMember.answers`."""
    of_run = f"{run}-" if run is not None else ""
    return folder / "logits" / f"{of_run}{name.replace('/', '-')}.parquet"


@dataclass(frozen=True)
class Soup:
    """One model of several.

    Args:
        kind (`str`): `uniform`: the mean of all members; `greedy`: of those that the greedy recipe chose; `wise`:
            between the one member and its start.
        start_sha256 (`str`): The hash of the weights that every member was trained from.
        like (`str`): The candidate that started there; it says how the members were trained.
        members (`list[SoupMember]`): All that could be taken. With `wise` the rest of the weight is the start's.
        score (`float`): The objective of the soup. Optimistic: the soup was chosen by it on the same rows.
    """

    kind: SoupKind
    start_sha256: str
    like: str
    members: list[SoupMember]
    score: float

    @property
    def taken(self) -> list[SoupMember]:
        return [member for member in self.members if member.weight > 0]

    @property
    def told(self) -> str:
        """What it is made of, for people."""
        names = ", ".join(member.told for member in self.taken)
        if self.kind == "wise":
            [member] = self.members
            trained = f"{member.weight:.0%} of the backbone of {member.told}"
            return f"{trained} and {1 - member.weight:.0%} of that of its start, with the trained head"
        of_all = f"{len(self.taken)} of {len(self.members)} models"
        return f"the mean of the weights of {of_all} that share a start: {names}"
