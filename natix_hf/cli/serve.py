"""The command that serves a bundle over HTTP."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import warnings
from typing import Annotated

import typer

from natix_hf.cli.app import Command, app
from natix_hf.errors import UsageError
from natix_hf.terminal import say, tell

# A variable, not an option: others can read a command line.
TOKEN_VARIABLE = "NATIX_HF_SERVE_TOKEN"
_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
_SHORTEST_TOKEN = 8
_MANY = 1_000_000  # the images that a server may be asked in its life


@app.command(cls=Command)
def serve(
    bundle: Annotated[
        str, typer.Argument(metavar="BUNDLE", help="A bundle folder, a run folder or a Hub repository.")
    ],
    host: Annotated[str, typer.Option(help="Listen at this address. 0.0.0.0: at all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen at this port. 0: at a free one.")] = 8000,
    revision: Annotated[str | None, typer.Option(help="Take this branch, tag or commit of the repository.")] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="What runs the model: torch, compile, onnx, openvino, or auto: the fastest exact one."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=1024, help="Put at most so many waiting images in one forward pass.")
    ] = 8,
    any_batch: Annotated[
        bool, typer.Option("--any-batch", help="Form batches even where they change the last digits of an answer.")
    ] = False,
    max_megabytes: Annotated[
        float, typer.Option(min=0.001, max=1024, help="Refuse a larger body of a request.")
    ] = 32.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, max=128, help="Refuse a larger image.")] = 128.0,
    max_images: Annotated[int, typer.Option(min=1, max=10000, help="Refuse a request with more images.")] = 64,
    queue: Annotated[int, typer.Option(min=1, max=100000, help="Let at most so many images wait.")] = 256,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds in which an image must be read.")] = 30.0,
    grace: Annotated[
        float, typer.Option(min=0, max=3600, help="Give accepted requests so many seconds to end.")
    ] = 30.0,
) -> None:
    """Answer images over HTTP: POST /predict, GET /health, GET /policy, and a page to try them.

    With the environment variable NATIX_HF_SERVE_TOKEN every request for answers must carry that bearer token.
    """
    missing = [package for name, package in _NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}: pip install 'natix_hf[serve]'")
    token = os.environ.get(TOKEN_VARIABLE, "").strip() or None
    if token is not None and not (len(token) >= _SHORTEST_TOKEN and token.isascii() and token.isprintable()):
        raise UsageError(
            f"{TOKEN_VARIABLE} is no token: it needs at least {_SHORTEST_TOKEN} printable ASCII characters"
        )
    from natix_hf import interrupt
    from natix_hf.bundle.load import load_bundle
    from natix_hf.serve.limits import Limits
    from natix_hf.serve.server import bound, run, url_of
    from natix_hf.serve.service import Service

    made = bound(host, port)  # before the model is loaded: a port that is taken ends it at once
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        # a server answers for hours, so that what takes a minute to start may pay
        many = _MANY if backend == "auto" else None
        loaded = load_bundle(bundle, revision=revision, backend=backend, expected_images=many)
    for warning in heard:
        typer.echo(f"warning: {warning.message}", err=True)
    if token is None and not _is_loopback(made.getsockname()[0]):
        typer.echo(
            f"warning: everybody who reaches {host} may ask: set {TOKEN_VARIABLE}, or leave --host out", err=True
        )
    limits = Limits(max_megabytes, max_megapixels, max_images, queue, timeout_s=timeout, batch_size=batch_size)
    service = Service(loaded, limits, token, any_batch)
    facts = service.facts
    tell(f"model     {facts.model}, {facts.image_size} px, {facts.backend}, {facts.precision}")
    if facts.batch_difference and not any_batch:
        tell(
            "batches   none: here an answer depends on its batch, by up to "
            f"{facts.batch_difference:.0e} in the logit (--any-batch takes that)"
        )
    else:
        tell(f"batches   of up to {max(facts.batch_sizes)} images, as they wait")

    def ready() -> None:
        say(f"serving   {url_of(made, host)}")

    interrupt.defer("answering what was accepted, then it ends")
    run(service, made, grace, interrupt.received, ready)
    interrupt.act()


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
