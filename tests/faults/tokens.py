"""A token in every place that a message can come from: it is never shown, and never written into a run.

    python tests/faults/tokens.py [--count 0] [--seed 0]

The command line is given a token (in a URL, as a revision, a value, a key, a file's name, in a damaged recipe), or has
its own in HF_TOKEN while the tests' Hub answers with that token's echo. Each case runs as it is and with --debug.
`--count` limits the cases; 0 takes all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import local_hub
import pytest
from local_hub import LocalHub

from natix_hf.cli.app import main as command
from natix_hf.errors import RunError
from natix_hf.launch import phase_script
from natix_hf.terminal import detail, log_to, robust_streams, say, tell

TOKEN = "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7cF0iL3o"
SHORT = "hf_own7"  # of another form: known because it is this process's own
_URLS = (
    f"https://user:{TOKEN}@host/org/data",
    f"https://{TOKEN}@host/d",
    f"https://host/d?token={TOKEN}&a=b",
    TOKEN,
    f"org/{TOKEN}",
    f"hf://datasets/org/name@{TOKEN}",
    f"./{TOKEN}/pictures",
)
_RECIPES = {
    "a value": f"phase6: {{description: 'made with {TOKEN}'}}",
    "a source": f"data: {{source: 'https://u:{TOKEN}@host/d'}}",
    "an unlabelled source": f"phase4: {{unlabelled: ['https://host/d?token={TOKEN}']}}",
    "a key": f"data: {{{TOKEN}: 1}}",
    "a key of a model": f"model: {{config: {{model_type: vit, {TOKEN}: 1}}}}",
    "a wrong value": f"data: {{on_overlap: {TOKEN}}}",
    "a number": f"phase1: {{learning_rate: {TOKEN}}}",
    "twice": f"data: {{{TOKEN}: 1, {TOKEN}: 2}}",
    "no YAML": f"data: {{source: {TOKEN}\n  x: [",
    "a long line": f"data: {{a: '{'x' * 60}{TOKEN}{'y' * 60}' b",
    "an alias": f"data: *{TOKEN}",
    "a tag": f"data: !{TOKEN} a",
    "hub_token": f"phase1: {{hub_token: {TOKEN}}}",
    "beside a long text": f"data: {{on_overlap: '{'x' * 40}{TOKEN}'}}",
}


def _cases(folder: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    """Name -> (the token that must not be seen, what runs)."""
    cases: dict[str, tuple[str, Callable[[], object]]] = {}

    def add(name: str, *arguments: str, token: str = TOKEN) -> None:
        for further in ([], ["--debug"]):
            given = [*arguments, *further]
            cases[" ".join((name, *further))] = (token, lambda given=given: command(given))  # type: ignore[misc]

    for n, url in enumerate(_URLS):
        add(f"inspect {n}", "inspect", url)
        add(f"run {n}", "run", "quickstart", f"data.source={url}", "--run-dir", str(folder / "run"))
        add(f"revision {n}", "pull", "lab/model", "--revision", url)
        for verb in ("verify", "pull", "report"):
            add(f"{verb} {n}", verb, url)
    for name, text in _RECIPES.items():
        file = folder / f"{name.replace(' ', '_')}.yaml"
        file.write_text(text, encoding="utf-8")
        add(f"recipe with {name}", "run", str(file), "--run-dir", str(folder / "run"))
    add("unknown command", TOKEN)
    add("unknown option", "run", f"--{TOKEN}")
    add("extra argument", "doctor", TOKEN)
    cases["phase script"] = (TOKEN, lambda: phase_script(1, ["--recipe", "quickstart", f"--x={TOKEN}"]))
    def a_bug(*_: object, **__: object) -> None:
        try:
            raise ValueError(f"GET https://host/?token={TOKEN}")
        except ValueError as error:
            raise TypeError(f"not a token: {TOKEN}") from error

    def with_a_bug() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("natix_hf.recipe.load_recipe", a_bug)
            patch.setattr("natix_hf.recipe.packaged_recipes", a_bug)
            command(["recipes"])

    cases["a bug"] = (TOKEN, with_a_bug)
    for status in (400, 401, 403, 404, 409, 429, 500):
        cases[f"Hub's echo {status}"] = (
            SHORT,
            lambda status=status: command(["pull", f"lab/model{status}", "--debug"]),
        )  # type: ignore[misc]
        cases[f"Hub's echo, one line {status}"] = (
            SHORT,
            lambda status=status: command(["pull", f"lab/model{status}"]),
        )  # type: ignore[misc]

    def all_lines() -> None:
        robust_streams()
        with log_to(folder / "run.log"):
            for show in (say, tell, detail):
                show(f"a line with {TOKEN}, {SHORT} and https://a:{TOKEN}@host")
            try:
                raise ValueError(f"GET https://host/?token={TOKEN}")
            except ValueError as error:
                raise RunError(f"it ended with {TOKEN}") from error

    cases["lines and the log"] = (TOKEN, all_lines)
    return cases


def _run(call: Callable[[], object]) -> str:
    """All that a call prints, and its traceback as Python would show it."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            call()
        except SystemExit:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    return out.getvalue() + err.getvalue()


def attack(count: int) -> int:
    """Try the cases, print the counts, and return how often a token was seen."""
    counts: Counter[str] = Counter()
    silent = 0
    with tempfile.TemporaryDirectory() as place, LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        folder = Path(place)
        patch.chdir(folder)
        hub.add_user(SHORT, "ann", orgs=["lab"])
        hub.use_in_process(patch, folder / "home", token=SHORT, waits=False)
        for status in (400, 401, 403, 404, 409, 429, 500):
            patch.setitem(local_hub.MESSAGES, status, f"the token {SHORT} ({TOKEN}) may not do that")
            hub.fail(status, path=f"model{status}")
        cases = list(_cases(folder).items())
        for name, (token, call) in cases[: count or None]:
            shown = _run(call)
            seen = [part for part in (token, TOKEN, TOKEN[8:24]) if part in shown]
            counts["missed" if seen else "hidden"] += 1
            silent += not shown.strip()
            if seen or not shown.strip():
                print(f"FAULT: {name}: {'nothing is said' if not shown.strip() else ascii(shown[-300:])}")
        own = [*folder.glob("*.yaml")]
        files = [path for path in folder.rglob("*") if path.is_file() and path not in own]
        written = [path for path in files if any(t.encode() in path.read_bytes() for t in (TOKEN, SHORT))]
        for path in written:
            print(f"FAULT: it stands in {path.relative_to(folder)}")
    print(f"messages: {counts.total()} tried, {counts['hidden']} hidden, {counts['missed']} missed, {silent} silent")
    print(f"files: {len(files)} looked at, {len(written)} with a token")
    return counts["missed"] + silent + len(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0, help="not used: the cases are always the same")
    options = parser.parse_args()
    raise SystemExit(1 if attack(options.count) else 0)


if __name__ == "__main__":
    main()
