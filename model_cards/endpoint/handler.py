"""The handler of an Inference Endpoint. `pinned.json` names the bundle, its commit and the sha256 of its manifest."""

from natix_hf.serve.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
