"""The command line: `tmbench doctor`, or `python -m tmbench.doctor`."""

import json
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from typing import Any

from ..config.machine import cpu_model
from ..config.values import Setting
from ..progress import loading_torch
from ..result import versions
from ..verbs import JSON, RUNS_DIR, Values, Verb, leave
from . import SCHEMA, Finding, examined

COLOURS = {"green": "green", "yellow": "yellow", "red": "bold red", "skipped": "dim"}
SETTINGS = {
    "runs_dir": RUNS_DIR,
    "data_dir": Setting("a folder, or null", "where the data sets are; null: TMBENCH_DATA, else ./data"),
    "extras": Setting("a word, or null", "optional parts that you need, separated by commas: red if one is absent"),
    "json": JSON,
}


def do(values: Values, words: list[str]) -> int:
    """Prints what was found; 1 if anything is red."""
    loading_torch()
    from . import machine, place

    checks = machine.checks() | place.checks(values)
    findings = [finding for name, check in checks.items() for finding in examined(name, check)]
    if values["json"]:
        print(json.dumps(content_of(findings), indent=2))
    else:
        _show(findings)
    return int(any(finding.state == "red" for finding in findings))


def content_of(findings: list[Finding]) -> dict[str, Any]:
    """What the JSON says."""
    made: dict[str, Any] = {"processor": cpu_model()}
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


main = Verb(
    "doctor",
    "Says in seconds whether tmbench can work on this machine: what is here, what is not, and what to do about it.\n"
    "green: works; yellow: works with a limit; red: does not work.\nExit status: 0, or 1 if anything is red.",
    do,
    SETTINGS,
    examples="tmbench doctor runs_dir=DIR data_dir=DIR   before the first run on a machine\n"
    "tmbench doctor extras=tune,od json=true   for a program, which needs these parts",
)

if __name__ == "__main__":
    leave(main())
