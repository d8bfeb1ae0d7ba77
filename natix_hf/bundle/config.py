"""The recipe's `phase6:` section. This module imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from natix_hf.bundle.licences import KNOWN, LICENCES, OTHER, is_licence_name, is_public_address
from natix_hf.provenance.hub import is_repo_id, is_tag
from natix_hf.section import LATER, Section
from natix_hf.subnet.hotkey import is_hotkey


@dataclass(frozen=True)
class ExportConfig(Section):
    """Evaluation on test, and the bundle."""

    place: ClassVar[str] = "phase6"

    fold: Annotated[
        Literal["decision", "calibration", "none"],
        "What a plain cut at 0.5 follows: the fitted threshold (decision), the calibrated probability (calibration), "
        "or the model's own probability (none).",
    ] = "decision"
    n_resamples: Annotated[int, "Number of resamples of the group bootstrap behind every interval."] = 1000
    onnx: Annotated[bool, "Write model.onnx too, for onnxruntime on a CPU. Needs natix_hf[onnx]."] = False
    model_name: Annotated[str | None, "Title of the model card; null takes the recipe's name."] = None
    description: Annotated[str | None, "Description on the model card; null takes the question, data.question."] = None
    version: Annotated[str, "Version of the model, as X.Y.Z."] = "0.1.0"
    submitted_by: Annotated[
        str | None, "The miner's hotkey (SS58). With null the bundle has no model_card.json for the subnet."
    ] = None
    push: Annotated[bool, "Publish the bundle on the Hub in one commit, and read it back to check it."] = False
    repo_id: Annotated[str | None, "The repository to publish to, as org/name."] = None
    private: Annotated[bool, "Make the repository private if it does not exist yet."] = False
    tag: Annotated[str | None, "Tag of the published commit, such as v1.0.0."] = None
    license: Annotated[
        str | None,
        "Licence of the model, an identifier of the Hub such as apache-2.0. With null the card states none.",
    ] = field(default=None, metadata=LATER)
    license_name: Annotated[str | None, "Name of the licence, if phase6.license is other."] = field(
        default=None, metadata=LATER
    )
    license_link: Annotated[str | None, "Address of its text (https), if phase6.license is other."] = field(
        default=None, metadata=LATER
    )
    widget: Annotated[
        list[str],
        "Addresses (https) of public pictures that the Hub's page offers to try the model on. Nothing is uploaded.",
    ] = field(default_factory=list, metadata=LATER)

    def check(self) -> None:
        hotkey, repo_id, tag = self.submitted_by, self.repo_id, self.tag
        self.require_within("n_resamples", 100, 10**6)
        numbered = re.fullmatch(r"\d+\.\d+\.\d+", self.version, re.ASCII) is not None
        self.require(numbered, "version", "X.Y.Z, such as 1.0.2")
        known = hotkey is None or is_hotkey(hotkey)
        self.require(known, "submitted_by", "an SS58 address with its checksum, or null")
        self.require(repo_id is None or is_repo_id(repo_id), "repo_id", "org/name, or null")
        self.require(repo_id is not None or not self.push, "repo_id", "org/name if phase6.push is true")
        for name in ("repo_id", "private", "tag"):
            self.require(self.push or not getattr(self, name), name, "left out unless phase6.push is true")
        self.require(tag is None or is_tag(tag), "tag", "a name of letters, digits, dots and dashes, or null")
        self.require(self.license is None or self.license in LICENCES, "license", KNOWN)
        called, link = self.license_name, self.license_link
        asked, other = f"given if phase6.license is {OTHER}, else left out", self.license == OTHER
        self.require((called is not None) == other, "license_name", asked)
        self.require((link is not None) == other, "license_link", asked)
        self.require(
            called is None or is_licence_name(called), "license_name", "lower-case letters, digits, dots, dashes"
        )
        self.require(link is None or is_public_address(link), "license_link", "a public https address")
        public = all(map(is_public_address, self.widget))
        self.require(public, "widget", "public https addresses, without a user name or anything behind a ? or #")
