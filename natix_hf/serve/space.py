"""The page of a Space: a picture in; decision, probability, threshold, promise and heatmap out. It needs gradio."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from natix_hf.bundle.load import Bundle, Prediction
from natix_hf.bundle.policy import Policy
from natix_hf.bundle.space import PINNED, read_pinned
from natix_hf.bundle.stream import BadImage
from natix_hf.errors import NatixError, UsageError
from natix_hf.serve.answers import answer_json
from natix_hf.serve.endpoint import pinned_bundle

_WIDTH = "max-width:34rem"


def answer_html(answer: Prediction, policy: Policy) -> str:
    """The answer as HTML: the decision, a bar of the probability with the threshold, and what is promised."""
    labels, p, cut = policy.labels, answer.probability, answer.threshold
    side = "above" if answer.label == labels.yes else "not above"
    held = "" if answer.accepted else f" It would be {escape(answer.label)}, but the promise does not cover it."
    bar = (
        f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="probability {p:.3f}, threshold '
        f'{cut:.3f}" style="width:100%;height:28px;display:block">'
        f'<rect x="0" y="3" width="100" height="6" fill="#8884"/>'
        f'<rect x="0" y="3" width="{100 * p:.2f}" height="6" fill="#2f7fd6"/>'
        f'<rect x="{min(99.2, 100 * cut):.2f}" y="0" width="0.8" height="12" fill="#d9480f"/></svg>'
    )
    return (
        f'<div style="{_WIDTH};overflow-wrap:anywhere"><p style="font-size:1.8rem;font-weight:600;margin:0">'
        f"{escape(named(answer.decision, policy))}</p>{bar}"
        f"<p>Probability of {escape(labels.yes)}: <b>{p:.3f}</b>, {side} the threshold <b>{cut:.3f}</b> "
        f"(the mark in the bar).{held}</p>{promise_html(policy)}</div>"
    )


def named(decision: str, policy: Policy) -> str:
    """A decision with its meaning where its name does not tell it, such as `Roadwork (yes)`."""
    meaning = {policy.labels.yes: "yes", policy.labels.no: "no"}.get(decision, decision)
    return decision if decision.lower() == meaning else f"{decision} ({meaning})"


def promise_html(policy: Policy) -> str:
    words = policy.promise.guarantee.rstrip(".")
    return f'<p style="font-size:.9rem;opacity:.8">Promise: {escape(words)}.</p>'


def problem_html(line: str) -> str:
    return f'<div style="{_WIDTH};overflow-wrap:anywhere"><p><b>Not answered.</b> {escape(line)}</p></div>'


def heatmap(bundle: Bundle, content: bytes) -> tuple[Any, str]:
    """The picture of what moved the answer, or None and the reason why there is none."""
    explain = getattr(bundle, "explain", None)
    if explain is None:
        return None, "No heatmap: this version of natix_hf makes none."
    try:
        found = explain(content)
        return found.picture(), str(getattr(found, "told", "A small change of these places moves the answer most."))
    except NatixError as error:
        return None, f"No heatmap: {error}"


def respond(bundle: Bundle, path: str | None) -> tuple[str, Any, str]:
    """HTML of the answer, heatmap or None, and a line below it, for a file that was sent."""
    if path is None:
        return problem_html("Choose a picture first."), None, ""
    content = Path(path).read_bytes()  # the bytes, so that no line names a path of this machine
    [answer] = bundle.stream([content])
    if isinstance(answer, BadImage):
        return problem_html(answer_json("the picture", answer)["error"]), None, ""
    return answer_html(answer, bundle.policy), *heatmap(bundle, content)


def build(pinned: str | Path = PINNED, bundle: Bundle | None = None) -> Any:
    """The page, a `gradio.Blocks`.

    Args:
        pinned: The file that names the bundle.
        bundle: A loaded bundle, in place of the one in `pinned`.

    Raises:
        UsageError: if gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise UsageError(f"the page of a Space needs gradio: pip install gradio ({error})") from None

    title = "Yes, no, or abstain"
    told = ""
    if bundle is None:
        pin = read_pinned(Path(pinned))
        bundle = pinned_bundle(Path(pinned).parent)
        title = pin.repo_id
        told = f"[{pin.repo_id}](https://huggingface.co/{pin.repo_id}) at commit `{pin.revision[:12]}`. "
    loaded = bundle
    yes, no = (named(label, bundle.policy) for label in (bundle.policy.labels.yes, bundle.policy.labels.no))
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}\n{told}The answer is **{yes}**, **{no}** or **abstain**.")
        with gradio.Row():
            with gradio.Column():
                # As it was sent, in its own mode: the package decodes it.
                given = gradio.Image(type="filepath", image_mode=None, label="Picture", height=320)
                button = gradio.Button("Answer", variant="primary")
            with gradio.Column():
                answer = gradio.HTML(promise_html(loaded.policy))
                heat = gradio.Image(label="What moved the answer", interactive=False, visible=False, height=320)
                line = gradio.Markdown()

        def run(path: str | None) -> tuple[str, Any, str]:
            told, picture, below = respond(loaded, path)
            return told, gradio.update(value=picture, visible=picture is not None), below

        button.click(run, given, [answer, heat, line], api_name="answer")
    return page
