"""The command line: `tmbench doctor`, or `python -m tmbench.doctor`."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from ..config.machine import cpu_model
from ..config.values import Setting
from ..errors import UsageError
from ..files import folder_for, write
from ..progress import loading_torch
from ..result import versions
from ..verbs import JSON, RUNS_DIR, Values, Verb, leave, out_dir
from . import SCHEMA, Finding, examined

COLOURS = {"green": "green", "yellow": "yellow", "red": "bold red", "skipped": "dim"}
SETTINGS = {
    "runs_dir": RUNS_DIR,
    "data_dir": Setting("a folder, or null", "where the data sets are; null: TMBENCH_DATA, else ./data"),
    "extras": Setting("a word, or null", "optional parts that you need, separated by commas: red if one is absent"),
    "train": Setting("true or false", "train tiny models as well: minutes, and a report in `out`", False),
    "parts": Setting("a word", "of the trainings, separated by commas", "all"),
    "out": out_dir("./doctor"),
    "json": JSON,
}
PARTS = {
    "tasks": "every task, 20 steps at least, with sgd and tmsgd",
    "learns": "tc, ic and ctr whole: the loss falls, the metric beats a predictor without input",
    "repeats": "the same seed twice",
    "resumes": "stopped and resumed",
    "devices": "the first 20 steps on the GPU against the CPU, one by one",
    "bf16": "bf16-mixed against float32",
    "fused": "the kernels against foreach, and the certificate of TM-SGD",
    "rows": "tables stepped by rows against dense ones",
    "replicas": "four seeds in one stack against each by itself",
    "trunks": "runs that share their beginning against runs that do not",
    "ranks": "two processes against one; one that is killed",
    "step": "time of a step beside torch's and a copy of memory",
    "loader": "an epoch with its loader against one on batches that are in memory already",
}


def do(values: Values, words: list[str]) -> int:
    """Prints what was found; 1 if anything is red."""
    parts = [*PARTS] if values["parts"] == "all" else values["parts"].split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        raise UsageError(f"parts: expected names among {', '.join(PARTS)}, got {', '.join(unknown)}")
    out = folder_for("out", values["out"]) if values["train"] else None
    loading_torch()
    from . import machine, place

    started = time.perf_counter()
    checks = machine.checks() | place.checks(values)
    findings = [finding for name, check in checks.items() for finding in examined(name, check)]
    if out is not None:
        findings += examined("trainings", partial(_trained, parts))
    content = content_of(findings, time.perf_counter() - started)
    text = json.dumps(content, indent=2) + "\n"
    if out is not None:
        write(out / "doctor.json", text)
        write(out / "doctor.md", markdown(content))
    if values["json"]:
        print(text, end="")
    else:
        _show(findings)
        if out is not None:
            print(f"report: {out / 'doctor.md'}, and the same as JSON beside it")
    return int(content["state"] == "red")


def _trained(parts: list[str]) -> Iterator[Finding]:
    """The findings of the trainings, which leave nothing behind."""
    from .battery import battery

    with tempfile.TemporaryDirectory(prefix="tmbench-doctor-") as folder:
        try:
            yield from battery(Path(folder), parts, lambda line: print(line, file=sys.stderr, flush=True))
        except KeyboardInterrupt:  # which names the folder of a run
            raise KeyboardInterrupt("nothing is kept of it") from None


def markdown(content: dict[str, Any]) -> str:
    """The page to attach where something does not work."""
    made, lines = content["made"], ["# tmbench doctor", ""]
    lines += [f"Worst finding: {content['state']}. Examined in {made['seconds']:.0f} s on {made['processor']}.", ""]
    lines += [", ".join(f"{name} {version}" for name, version in made.get("versions", {}).items()), ""]
    lines += ["| | finding | found | to do |", "|---|---|---|---|"]
    for finding in content["findings"]:
        cells = (finding[key].replace("|", "\\|") for key in ("state", "name", "found", "remedy"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def content_of(findings: list[Finding], seconds: float) -> dict[str, Any]:
    """What the JSON says."""
    made: dict[str, Any] = {"processor": cpu_model(), "seconds": round(seconds, 1)}
    with suppress(PackageNotFoundError):  # torch, perhaps: a finding says so
        made["versions"] = versions()
    return {"schema": SCHEMA, "state": worst(findings), "made": made, "findings": [asdict(f) for f in findings]}


def worst(findings: list[Finding]) -> str:
    return next((s for s in ("red", "yellow") if any(f.state == s for f in findings)), "green")


def _show(findings: list[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from ..runs.show import console

    out, table = console(), Table.grid(padding=(0, 1))
    for column in range(3):
        table.add_column(no_wrap=column < 2, overflow="fold")
    for finding in findings:
        colour = COLOURS[finding.state]
        table.add_row(f"[{colour}]{finding.state}[/{colour}]", f"[bold]{finding.name}[/bold]", escape(finding.found))
        if finding.remedy:
            table.add_row("", "", f"[italic]to do: {escape(finding.remedy)}[/italic]")
    out.print(table, highlight=False)
    counts = [f"{sum(f.state == state for f in findings)} {state}" for state in COLOURS]
    out.print(f"\n{', '.join(counts)}", highlight=False)


PART_LINES = "\n".join(f"  {name:<8}  {text}" for name, text in PARTS.items())
main = Verb(
    "doctor",
    "Says in seconds whether tmbench can work on this machine: what is here, what is not, and what to do about it.\n"
    "green: works; yellow: works with a limit; red: does not work.\nExit status: 0, or 1 if anything is red.\n\n"
    f"With train=true it also trains tiny models, in minutes, on every kind of device that there is:\n{PART_LINES}",
    do,
    SETTINGS,
    examples="tmbench doctor runs_dir=DIR data_dir=DIR   before the first run on a machine\n"
    "tmbench doctor train=true out=DIR   does it work; a page to attach where it does not\n"
    "tmbench doctor extras=tune,od json=true   for a program, which needs these parts",
)

if __name__ == "__main__":
    leave(main())
