"""The command line: `tmbench certify`, or `python -m tmbench.certify`."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ..config.compose import composed, own_files
from ..config.identity import reads_switch
from ..config.settle import settled
from ..config.table import FOR_THE_RUN, NEVER, choices
from ..config.values import Setting
from ..errors import ConfigError, UsageError, did_you_mean
from ..progress import loading_torch
from ..verbs import CONFIG_DIR, EXPECTED, JSON, RUNS_DIR, Values, Verb, explain, leave
from . import CHECKS, certify

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from .catalogue import Entry
    from .descent import NewOptimizer

SETTINGS = {
    "optimizer": Setting("a word, or null", "a file of conf/optimizer; its settings follow as optimizer.KEY=VALUE"),
    "target": Setting("a word, or null", "any class instead, from the current folder too; key=value are its arguments"),
    "reference": Setting("a word, or null", "a file of conf/optimizer that it must agree with, at the same lr"),
    "checks": Setting("a word", "names from the list above, separated by commas", "all"),
    "out": Setting("a folder, or null", "where certificate.json goes; null: none is written"),
    "json": JSON,
    "config_dir": CONFIG_DIR,
}
COLOURS = {"holds": "green", "does not": "bold red", "not applicable": "dim"}


def do(values: Values, words: list[str]) -> int:
    """Certifies what the words ask for and prints it; 1 if a check failed."""
    checks = [*CHECKS] if values["checks"] == "all" else values["checks"].split(",")
    if unknown := [check for check in checks if check not in CHECKS]:
        raise UsageError(f"checks: expected names among {', '.join(CHECKS)}, got {', '.join(unknown)}")
    loading_torch()
    try:
        title, new, reference = _requested(values, words)
        optimizer = _made(title, new)
    except EXPECTED as error:
        raise UsageError(explain(error)) from None
    from ..files import folder_for, write
    from ..result import versions

    out = values["out"] and folder_for("out", values["out"])
    findings, group = certify(new, reference, checks=checks), optimizer.param_groups[0]
    certificate = {
        "optimizer": title, "class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "settings": {k: str(v) for k, v in group.items() if k not in ("params", "step") and v is not None},
        "versions": versions(), "findings": [asdict(finding) for finding in findings],
    }  # fmt: skip
    content = json.dumps(certificate, indent=2) + "\n"
    if out:
        write(out / "certificate.json", content)
    if values["json"]:
        print(content, end="")
    else:
        _show(certificate)
    return int(any(finding.verdict == "does not" for finding in findings))


def _requested(values: Values, words: list[str]) -> tuple[str, "NewOptimizer", "NewOptimizer | None"]:
    """The optimizer that the words ask for: its name, what makes it, and what makes its reference.

    Raises:
        ConfigError, HydraException: there is no such optimizer, or it cannot have such settings.
    """
    files, target, name = own_files(values["config_dir"]), values["target"], values["optimizer"]
    if (target is None) == (name is None):
        got = "both" if name else " ".join(words) or "neither"
        hint = did_you_mean(got.partition("=")[0], SETTINGS) or "; --help lists the names"
        raise ConfigError(f"expected optimizer=NAME or target=my.module.Class, got {got}{hint}")
    of_both = [word for word in words if word.startswith("lr=") or not (target or word.startswith("optimizer"))]
    reference = values["reference"] and _from_files([*files, f"optimizer={values['reference']}", *of_both])[1]
    if target is None:
        return *_from_files([*files, f"optimizer={name}", *words]), reference
    arguments: Any = OmegaConf.to_container(OmegaConf.from_dotlist(words))
    return target, _partial({"_target_": target, "_partial_": True, **arguments}), reference


def _from_files(words: list[str]) -> tuple[str, "NewOptimizer"]:
    from .descent import SWITCH_STEP

    cfg = settled(composed(words))
    settings = cfg["optimizer"]
    name = settings["name"] if "_target_" in settings else ""
    settings = {key: value for key, value in settings.items() if key not in FOR_THE_RUN}
    if reads_switch(cfg) and settings["switch_step"] is None and cfg["switch_epoch"] != NEVER:
        settings["switch_step"] = SWITCH_STEP
    return name, _partial(settings)


def _partial(settings: dict[str, Any]) -> "NewOptimizer":
    try:
        new: NewOptimizer = instantiate(settings, _convert_="all")
    except HydraException as error:
        raise ConfigError(f"{settings['_target_']} cannot be used: {error.__cause__ or error}") from None
    return new


def _made(title: str, new: "NewOptimizer") -> "Optimizer":
    import torch

    from .descent import summary_of

    try:
        optimizer = new([torch.zeros(2, requires_grad=True)])
    except Exception as error:
        raise ConfigError(f"{title} cannot be made: {summary_of(error)}") from None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"{title}: expected a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    return optimizer


def _show(certificate: dict[str, Any]) -> None:
    """Prints a table for each device."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from ..runs.show import console

    out, findings = console(), certificate["findings"]
    out.print(f"\n[bold]{escape(certificate['optimizer'])}[/bold]  {certificate['class']}", highlight=False)
    settings = ", ".join(f"{key}={value}" for key, value in certificate["settings"].items())
    out.print(escape(settings), style="dim", highlight=False)
    for device in dict.fromkeys(finding["device"] for finding in findings):
        table = Table("check", "verdict", "detail", title=f"on {device}", title_justify="left", box=box.SIMPLE_HEAD)
        table.columns[1].no_wrap = True
        table.columns[2].overflow = "fold"
        for finding in (f for f in findings if f["device"] == device):
            colour = COLOURS[finding["verdict"]]
            table.add_row(finding["check"], f"[{colour}]{finding['verdict']}[/{colour}]", escape(finding["detail"]))
        out.print(table)
    counts = [sum(f["verdict"] == verdict for f in findings) for verdict in COLOURS]
    out.print(f"{counts[0]} hold, {counts[1]} do not, {counts[2]} not applicable", highlight=False)


def do_list(values: Values, words: list[str]) -> int:
    """Prints what `optimizer=any` reaches, with certificates that are made where none is known."""
    if named := [word for word in words if "=" in word]:
        raise UsageError(f"list: expected names of classes such as Adadelta, got {named[0]}")
    loading_torch()
    from ..progress import Lines
    from ..training.optimizers import classes
    from .catalogue import Entry, entries

    names, found, lines = words or sorted(classes(), key=str.lower), list[Entry](), Lines()
    try:
        for entry, _ in entries(names, Path(values["runs_dir"]) / ".certificates"):
            found.append(entry)
            lines.say(lambda: f"{len(found)} of {len(names)} certified")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if values["json"]:
        print(json.dumps([asdict(entry) for entry in found], indent=2))
    else:
        _show_list(found)
    return 0


def _show_list(entries: "Sequence[Entry]") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from ..runs.show import console

    out = console()
    columns = ("optimizer", "of", "hold", "fail", "closure", "state", "elements", "paper")
    table = Table(*columns, box=box.SIMPLE_HEAD, title="optimizer=any optimizer.name=...", title_justify="left")
    table.columns[0].no_wrap, table.columns[7].overflow = True, "fold"
    for entry in entries:
        state = "-" if entry.state is None else f"{entry.state:g}"
        rest = [str(entry.holds), ", ".join(entry.fails), "needs" * entry.closure, state, "alone" * entry.elementwise]
        table.add_row(entry.name, entry.library.partition(" ")[0], *rest, escape(entry.paper))
    out.print(table)
    for entry in entries:
        for text in filter(None, (entry.licence, entry.problem)):
            out.print(f"[bold]{entry.name}[/bold]  {escape(text)}", highlight=False, soft_wrap=True)
    out.print(
        "\nhold, fail: checks of `tmbench certify`, counted and named. closure: step() needs one. state: numbers kept "
        "for each weight of a matrix. elements: it acts on each element alone, so that replicas can stack its runs.",
        style="dim", highlight=False,
    )  # fmt: skip


CHECK_LINES = "\n".join(f"  {key:<{max(map(len, CHECKS))}}  {sentence}" for key, sentence in CHECKS.items())
listing = Verb(
    "certify list", "Lists what optimizer=any reaches, with each certificate in short, its state, its paper, and its "
    "licence where that forbids commercial use. The first time takes minutes; certificates are kept under runs_dir.",
    do_list, {"runs_dir": RUNS_DIR, "json": JSON}, "[NAME ...]", "tmbench certify list Adadelta Tiger",
)  # fmt: skip
main = Verb(
    "certify",
    "Says what a person can rely on in an optimizer, by short checks that take some seconds.\n"
    "Exit status: 0 if no check failed, 1 if one did, 2 if the optimizer could not be made.\n\n"
    f"Optimizers:\n  {' '.join(choices('optimizer'))}\n\nChecks:\n{CHECK_LINES}",
    do,
    SETTINGS,
    takes="[KEY=VALUE ...]",
    examples="tmbench certify optimizer=tmsgd optimizer.momentum=0.9 reference=sgd lr=0.1\n"
    "tmbench certify target=my.module.Class lr=0.01 weight_decay=0.1\n"
    "tmbench certify list                        what optimizer=any reaches",
    choices={"list": listing},
)

if __name__ == "__main__":
    leave(main())
