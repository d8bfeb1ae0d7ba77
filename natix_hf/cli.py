"""The command line. Every heavy import is inside the command that needs it, so that --help answers at once."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from natix_hf.errors import NatixError, UsageError, VerificationError
from natix_hf.reporting import errors_in_one_line, fail, robust_streams, say

if TYPE_CHECKING:
    from natix_hf.bundle.load import Answer

app = typer.Typer(
    help="From images and a pretrained ViT to a deployable, calibrated roadwork classifier.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
)


@app.callback()
def _global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """From images and a pretrained ViT to a deployable, calibrated roadwork classifier."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe (natix-hf recipes) or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Override the recipe.")] = None,
    phases: Annotated[str | None, typer.Option(help="As in 1,2,6, or all; default: those of the recipe.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Continue the run in this folder, or begin one there.")] = None,
    accelerate_config: Annotated[Path | None, typer.Option(help="Launch training phases with this file.")] = None,
) -> None:
    """Run the phases of a recipe; what is current is skipped."""
    from natix_hf.phases.graph import parse_phases
    from natix_hf.pipeline import run_recipe

    wanted = parse_phases(phases) if phases is not None else None
    summarise(run_recipe(recipe, wanted, run_dir, accelerate_config, overrides or []))


def summarise(run_dir: Path) -> None:
    """The closing lines of a run: where the bundle is, how good it is, how to ask it."""
    from natix_hf.phases.context import finished_digest, is_stale
    from natix_hf.phases.graph import PHASES

    bundle = run_dir / PHASES[6].folder / "bundle"
    if finished_digest(run_dir, PHASES[6]) is None or is_stale(run_dir, PHASES[6]):
        say(f"done: {run_dir}")
        return
    evaluation = json.loads((bundle / "evaluation.json").read_text(encoding="utf-8"))
    say(f"bundle   {bundle}")
    for column, title in {"as_found": "as found", "at_target_prior": "at the target prior"}.items():
        if column in evaluation:
            low, high = evaluation[column]["intervals"]["mcc"]
            say(f"test MCC {evaluation[column]['metrics']['mcc']:.3f} [{low:.3f}, {high:.3f}] {title}")
    groups = evaluation["groups"]
    few = ", few groups: a wide interval" if groups["few"] else ""
    asked = f", each asked at {evaluation['views']} views of the exam" if "exam" in evaluation else ""
    say(f"         {evaluation['rows']} test rows in {groups['groups']} groups{asked}{few}")
    if asked:
        paid = evaluation["exam"]["rewards"]["fitted"]
        low, high = paid["range"]
        say(f"reward   {paid['expected']:.3f} to expect of the subnet's real pictures [{low:.3f}, {high:.3f}]")
    selective = evaluation["selective"]
    if selective["promised"] is not None:
        promise = json.loads((bundle / "policy.json").read_text(encoding="utf-8"))["risk_control"]
        if promise["feasible"]:
            risks = [(name, figure["value"]) for name, figure in selective["risks"].items()]
            found = ", ".join(f"{name} {'undefined' if risk is None else f'{risk:.3f}'}" for name, risk in risks)
            kept = f"{found} on test where at most {promise['alpha']:g} is promised, "
            kept += f"coverage {selective['coverage']['value']:.3f}"
        else:
            kept = f"none: no threshold could be certified for a risk of {promise['alpha']:g}"
        say(f"promise  {kept}")
    say(f"report   {bundle.parent / 'report.html'}")
    say(f"predict  natix-hf predict {bundle} image.jpg")


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from natix_hf.recipe import packaged_recipes

    for path in packaged_recipes():
        first_line = path.read_text(encoding="utf-8").splitlines()[0]
        say(f"{path.stem:24s} {first_line.lstrip('# ')}")


@app.command()
def keys(
    section: Annotated[
        str | None, typer.Argument(help="A section or key, as in phase1, data.augment or phase1.adapter.")
    ] = None,
) -> None:
    """List the keys of a recipe with their types, defaults and meanings."""
    from natix_hf.keys import as_text, terminal_width

    say(as_text(section, terminal_width()))


@app.command()
def verify(
    reference: Annotated[str, typer.Argument(help="A run folder, a bundle folder or a Hub repository.")],
) -> None:
    """Check manifests, checksums, lineage and leaks; exit code 1 if anything is off."""
    from natix_hf.verify import find_problems

    problems = find_problems(reference)
    for problem in problems:
        say(problem)
    say(f"{reference}: {len(problems)} problems" if problems else f"{reference}: intact")
    if problems:
        raise typer.Exit(1)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, finished or not.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the run folder.")] = None,
) -> None:
    """One page about a run, for a browser: figures, plots, hard examples, lineage. It needs no network."""
    from natix_hf.report.page import write_report

    say(str(write_report(run_dir, to)))


@app.command()
def predict(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, a run folder or a Hub repository.")],
    images: Annotated[list[Path], typer.Argument(help="Image files; - reads their names from standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 32,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Answer in bfloat16, and say what float32 answers else.")
    ] = False,
) -> None:
    """Answer for image files; one that cannot be read is reported in its place, and the exit code is 1."""
    from_stdin = images == [Path("-")]
    missing = [path for path in images if not (from_stdin or path.is_file())]
    if missing:
        raise UsageError(f"{missing[0]}: there is no such file")
    from natix_hf.bundle.load import Bundle, count_flips, load_bundle

    loaded = load_bundle(bundle, revision=revision, precision="bfloat16" if bf16 else "float32")
    named = (Path(line.rstrip("\r\n")) for line in sys.stdin if line.strip()) if from_stdin else iter(images)
    asked, paths = itertools.tee(named)  # the second is at most two batches behind
    if bf16:
        pairs = loaded.stream_beside(Bundle(loaded.folder), asked, batch_size)
    else:
        pairs = ((answer, answer) for answer in loaded.stream(asked, batch_size))
    found = count_flips(_told(paths, pairs, as_json))
    if bf16:
        flipped = f"bf16: {found.decisions} of {found.images} decisions are others in float32"
        typer.echo(f"{flipped}; probabilities differ by {found.max_difference:.4f} at most", err=True)
    if found.bad:
        raise NatixError(f"{found.bad} of {found.bad + found.images} images cannot be read: their lines say why")


def _told(
    paths: Iterable[Path], pairs: Iterable[tuple[Answer, Answer]], as_json: bool
) -> Iterator[tuple[Answer, Answer]]:
    """Says each answer, and what float32 answers where that is another decision, as they come."""
    from dataclasses import asdict

    from natix_hf.bundle.stream import BadImage

    for path, (answer, exact) in zip(paths, pairs, strict=True):
        if isinstance(answer, BadImage) or isinstance(exact, BadImage):
            problem = answer.problem if isinstance(answer, BadImage) else ""
            say(json.dumps({"image": str(path), "error": problem}) if as_json else f"{path}  error     {problem}")
        elif as_json:
            flip = {} if answer is exact else {"float32_decision": exact.decision}
            say(json.dumps({"image": str(path)} | asdict(answer) | flip))
        else:
            flipped = "" if answer.decision == exact.decision else f"  (float32: {exact.decision})"
            say(f"{path}  {answer.decision:8s}  P(Roadwork) {answer.probability:.3f}{flipped}")
        yield answer, exact


@app.command()
def push(
    reference: Annotated[str, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle folder.")],
    repo_id: Annotated[str, typer.Argument(help="A Hub repository as org/name; it is made if there is none.")],
    private: Annotated[bool, typer.Option("--private", help="If it is made now.")] = False,
    tag: Annotated[str | None, typer.Option(help="Of the commit, as v1.0.0.")] = None,
) -> None:
    """Publish a bundle on the Hub in one commit, then read it back and verify it."""
    from natix_hf.bundle.load import find_local_bundle
    from natix_hf.bundle.push import push_bundle
    from natix_hf.callbacks.push_bundle import say_published
    from natix_hf.verify import find_problems

    bundle = find_local_bundle(reference)
    for problem in find_problems(reference):
        raise VerificationError(f"{problem}; nothing was published")
    say_published(push_bundle(bundle, repo_id, private, tag))


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(help="A Hub repository as org/name.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: the main branch.")] = None,
    to: Annotated[Path | None, typer.Option(help="A new folder; default: one named as the repository, here.")] = None,
) -> None:
    """Download a bundle and verify every file of it."""
    from natix_hf.bundle.fetch import pull_bundle
    from natix_hf.bundle.verify import BUNDLE_MANIFEST
    from natix_hf.provenance.files import file_sha256

    folder, commit = pull_bundle(repo_id, revision, to)
    say(f"bundle    {folder}, verified")
    say(f"revision  {commit}")
    say(f"manifest  sha256 {file_sha256(folder / BUNDLE_MANIFEST)}")


@app.command()
def reward(
    bundle: Annotated[str, typer.Argument(help="A bundle folder, a run folder or a Hub repository.")],
    data: Annotated[str, typer.Option(help="Labelled pictures: a folder, or a Hub dataset id.")],
    label_rule: Annotated[str, typer.Option(help="scene_description, the validator's, or none.")] = "none",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the bundle on the Hub.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the exam's views.")] = 0,
) -> None:
    """What the subnet would pay for the answers to its exam, on real pictures (half of what it asks)."""
    if label_rule not in ("none", "scene_description"):
        raise UsageError(f"--label-rule {label_rule!r}: give none or scene_description")
    from natix_hf.bundle.load import load_bundle
    from natix_hf.data.config import DataConfig
    from natix_hf.reward import examine

    rule: Any = label_rule
    found = examine(load_bundle(bundle, revision), DataConfig(source=data, label_rule=rule, seed=seed))
    say(f"{found['rows']} pictures, {found['positives']} with roadwork, each at four levels; no synthetic ones")
    say("level     TPR    TNR    MCC")
    for name, rates in found["levels"].items():
        say(f"{name:6s} {rates['tpr']:6.3f} {rates['tnr']:6.3f} {rates['mcc']:6.3f}")
    ways = {"fitted": "the bundle's threshold", "half": "without it, at .5", "best": "the best threshold here"}
    for name, way in ways.items():
        paid = found["rewards"][name]
        low, high = paid["range"]
        rates = f"TPR {paid['tpr']:.3f}, TNR {paid['tnr']:.3f}"
        say(f"reward {paid['expected']:.3f}, 95 % of them from {low:.3f} to {high:.3f}: {way} ({rates})")


@app.command()
def plan(
    alpha: Annotated[float, typer.Option(help="Most risk among the accepted answers.")],
    delta: Annotated[float, typer.Option(help="Probability of a false promise, at most.")],
    error_rate: Annotated[float, typer.Option(help="That the accepted answers are expected to have.")] = 0.0,
    coverage: Annotated[float, typer.Option(help="Share of answers that is expected to be accepted.")] = 1.0,
) -> None:
    """Calibration groups that a guarantee needs, before anybody labels them."""
    from natix_hf.calibration import groups_needed

    found = groups_needed(alpha, delta, error_rate, coverage)
    say(f"{found.groups} calibration groups (videos, or rows that are their own group)")
    say(f"{found.accepted} of them accepted, with at most {found.allowed_errors} wrong, certify a risk of {alpha:g}")
    if error_rate:
        say(f"with {error_rate:g} of the accepted answers wrong that succeeds in {found.probability:.0%} of all draws")
    say(f"a false promise comes with probability {delta:g} at most; the phases put 15 to 17.5 % of the groups there")


@app.command()
def doctor() -> None:
    """Versions, devices, memory, disk, the Hub, and what is missing."""
    from natix_hf.doctor import check

    facts, warnings = check()
    for fact in facts:
        say(fact)
    for warning in warnings:
        say(f"warning: {warning}")


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: exit code 0 done, 1 a check or a run failed, 2 bad usage or input."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    robust_streams()
    try:
        with errors_in_one_line(debug):
            return app(args=[argument for argument in given if argument != "--debug"], prog_name="natix-hf")
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != 130:  # what typer makes of Ctrl-C
            raise
        fail(NatixError("interrupted; complete checkpoints stay, the same --run-dir continues"))
