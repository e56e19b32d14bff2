"""The pages of the manual that follow from the code: MkDocs calls this file as a hook (mkdocs.yml)."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter

from tmbench.__main__ import VERBS
from tmbench.certify import certify
from tmbench.config.compose import composed
from tmbench.config.table import FOR_THE_RUN, GROUPS, Key, choices, conf_dir, keys, top_keys, values_of
from tmbench.data.catalogue import catalogue
from tmbench.errors import ConfigError
from tmbench.optim import stability
from tmbench.result import Result
from tmbench.verbs import Verb

HIDDEN = ("_target_", "_partial_", "name", "profile", "data", "protocols", "full", "tiny", "models", "schedule",
          "trunk", "lazy_rows", "choices", "data_by")  # fmt: skip
TOP = {
    "task": "What is trained: data, network, loss and metric.", "optimizer": "How it is trained.",
    "data": "Made-up data, or the published set.", "protocol": "The paper's settings, repaired or to the letter.",
    "schedule": "What becomes of the learning rate.", "trainer": "Where it runs.",
    "logger": "What records a run beside its folder.", "launcher": "How the runs of a sweep are started.",
    "study": "What a sweep adds to each run with a switch.",
    "curvature": "Whether a run measures how near its steps are to the stability limit.",
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made of the code, and files that belong to the repository rather than to docs/."""
    pages = {
        "reference/settings.md": settings_page(), "reference/commands.md": commands_page(),
        "reference/result.md": result_page(), "reference/result.schema.json": json.dumps(schema(), indent=2),
    }  # fmt: skip
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Puts what the code knows in its place: `<!-- facts: sgd -->` of an optimizer, `data: r8`, `protocol: tc`."""
    makers = {"facts": optimizer_facts, "data": data_facts, "protocol": protocol_table, "steps": steps_table}
    return re.sub(r"<!-- (facts|data|protocol|steps): (\w+) -->", lambda match: makers[match[1]](match[2]), markdown)


def data_facts(name: str) -> str:
    """What the catalogue says of a data set."""
    entry = catalogue()[name]
    rows = [["what", entry.about], ["size", entry.size], ["terms", entry.terms], ["from", f"<{entry.homepage}>"],
            ["cite", entry.citation]]  # fmt: skip
    if entry.counts:
        rows.append(["examples", ", ".join(f"{split} {count:,}" for split, count in entry.counts.items())])
    rows.append(["files", ", ".join(f"`{name}/{file.path}`" for file in entry.files)])
    notes = "\n".join(f"- {fact}" for fact in entry.facts)
    return table([entry.title, ""], rows) + (f"\n{notes}\n" if notes else "")


def protocol_table(task: str) -> str:
    """A task's epochs, rate, batch size and switch: as printed, reconciled and on tiny data."""
    rows = [[model or "all", which, *cells] for _, model, which, *cells in protocol_rows(task)]
    return table(["model", "protocol", "epochs", "batch_size", "lr", "switch_epoch"], rows)


def steps_table(name: str) -> str:
    """What scripts/bench_rows.py measured."""
    measured = json.loads((Path(__file__).parents[1] / "docs" / name / f"{name}.json").read_text())
    ways = {"rows": "rows read", "foreach": "whole table, foreach", "fused": "whole table, fused"}
    sizes = max((step["milliseconds"] for step in measured["steps"]), key=len)
    rows = [
        [step["method"], ways[step["path"]], step["ids"], *(f"{ms:.2f}" for ms in step["milliseconds"].values())]
        for step in measured["steps"]
    ]
    rows = [[*row, *[""] * (3 + len(sizes) - len(row))] for row in rows]
    facts = f"torch {measured['torch']}, {measured['threads']} thread, {measured['processor']}"
    return table(["optimizer", "step", "ids", *(f"{int(size):,} rows" for size in sizes)], rows) + f"\n{facts}\n"


def table(head: list[str], rows: list[list[Any]]) -> str:
    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"


def shown(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def settings_page() -> str:
    """Every key of conf/: what it must be, what it does, and its default in each file."""
    text = [
        "# Settings",
        "Each is set as `key=value` on the command line, those of a group with the group's name before it: "
        "`optimizer.momentum=0.95`. The tables are made from the files in `conf/`. *Counts as* says what a setting is "
        "to the comparison of runs: part of the **problem**, of the **method**, of neither though it **changes the "
        "numbers** (the seed), or **bookkeeping**, which changes no number.",
        "## For every run", settings_table(top_keys()),
        "## The paper's protocol",
        "The values that `epochs`, `batch_size`, `lr` and `switch_epoch` have when nothing is said. `reconciled` "
        "repairs impossible cells of the paper's Table 2; `as_printed` is that table to the letter "
        "(`protocol=as_printed`); `tiny` holds for `data=tiny`.",
        table(["task", "model", "values of", "epochs", "batch_size", "lr", "switch_epoch"], list(protocol_rows())),
    ]  # fmt: skip
    for group in (*GROUPS[:-1], "launcher", GROUPS[-1]):
        text += [f"## {group}", TOP[group]]
        for name in choices(group):
            own = {f"{group}.{k}": v for k, v in keys(group, name).items() if k.rpartition(".")[2] not in HIDDEN}
            text += [f"### {group}={name}", about(group, name)]
            text.append(settings_table(own, values_of(f"{group}/{name}.yaml")) if own else "Nothing can be set.")
    return "\n\n".join(filter(None, text)) + "\n"


def about(group: str, name: str) -> str:
    """The comment at the top of a file."""
    lines = (conf_dir() / group / f"{name}.yaml").read_text().splitlines()
    head = []
    for line in lines:
        if not line.startswith("#"):
            break
        head.append(line.lstrip("# "))
    return " ".join(head).replace("<", "&lt;")


def settings_table(own: Mapping[str, Key], values: Mapping[str, Any] | None = None) -> str:
    profiles = [p for p in ("full", "tiny") if values and isinstance(values.get(p), dict)]
    rows = []
    for key, declared in own.items():
        help_text = declared.help + (f"; null: {declared.null}" if declared.null else "")
        if declared.only_with:
            help_text += f" (only with `{declared.only_with}`)"
        if declared.fixed:
            help_text += f" (cannot be set: {declared.fixed})"
        of_profile = [shown((values or {})[p].get(key.partition(".")[2])) for p in profiles]
        default = declared.default
        rows.append([f"`{key}`", "`null`" if default is None else shown(default), *of_profile, declared.expects,
                     help_text, declared.kind.removeprefix("of the ")])  # fmt: skip
    return table(["key", "default", *profiles, "must be", "what it does", "counts as"], rows)


def protocol_rows(*tasks: str) -> Iterator[list[Any]]:
    names = ("epochs", "batch_size", "lr", "switch_epoch")
    for task in tasks or choices("task"):
        values = values_of(f"task/{task}.yaml")
        for model, own in {"": values, **values.get("models", {})}.items():
            for which, cells in {**own.get("protocols", {}), "tiny": own.get("tiny", {})}.items():
                if any(name in cells for name in names):
                    yield [task, model, which, *(shown(cells.get(name)) for name in names)]


def commands_page() -> str:
    """What `--help` says of each command."""
    text = [
        "# Commands",
        "`tmbench` alone trains; each command is also `python -m tmbench.COMMAND`. All of them take `key=value`, and "
        "end with 0 (done), 1 (an error), 2 (the words are no command) or 130 (interrupted).",
    ]
    for name in ("run", *VERBS):
        module = import_module("tmbench.run" if name == "run" else f"tmbench.{VERBS[name]}")
        text += list(of_command(module.main))
    return "\n\n".join(text) + "\n"


def of_command(verb: Verb, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} tmbench {verb.name}"
    yield f"```text\n{verb.help()}\n```"
    for inner in verb.choices.values():
        yield from of_command(inner, level + 1)


def schema() -> dict[str, Any]:
    """The JSON schema of result.json, with the comments of the class as descriptions."""
    content = TypeAdapter(Result).json_schema()
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(Result), re.MULTILINE))
    for name, comment in comments.items():
        content["properties"][name]["description"] = comment
    content["properties"]["sha256"] = {"type": "string", "description": "of the content without this key"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "result.json of tmbench", **content}


def result_page() -> str:
    known, needed = schema()["properties"], {f.name: f.type for f in fields(Result)}
    types = {name: t.__name__ if isinstance(t, type) else str(t) for name, t in needed.items()}
    rows = [[f"`{name}`", f"`{types.get(name, 'str')}`", facts.get("description", "")] for name, facts in known.items()]
    return "\n\n".join([
        "# result.json",
        "Each run leaves one in its folder. It is strict JSON: numbers are finite, and what is not finite is told in "
        "`notes`. `schema_version` rises when a field changes its meaning; older files are still read. The same as "
        "[JSON schema](result.schema.json). Epochs and steps count from 1; seconds are wall-clock seconds.",
        table(["field", "type", "what it holds"], rows),
        "## curves.csv",
        "One row for each epoch: `epoch` and `step` (from 1), the learning rates `lr` or `lr/<group>`, `seconds` of "
        "training so far, `train/loss`, and each metric as `test/<metric>` (`validation/<metric>` with `validation=`, "
        "`test_ema/<metric>` with `ema=`). Epochs without evaluation leave their metrics empty.",
    ]) + "\n"  # fmt: skip


@cache
def optimizer_facts(name: str) -> str:
    """Where its class is, its stability, and what holds of its code; made when the manual is built."""
    from hydra.utils import instantiate

    from tmbench.config.settle import settled

    config = settled(composed(["task=tc", f"optimizer={name}", "lr=0.02"]))
    own = {key: value for key, value in config["optimizer"].items() if key not in FOR_THE_RUN}
    if "switch_step" in own:
        own["switch_step"] = 6
    new = instantiate(own)
    target = own["_target_"]
    lines = [f"`{target}`; its settings: [optimizer={name}](settings.md#optimizer{name})"]
    try:
        found = stability(new)
        lines.append(f"**Stable** for lr * curvature < {found.limit:.4g}; beyond, it oscillates with {found.kind}.")
    except (TypeError, ConfigError):
        lines.append("**Stability**: no limit in lr * curvature alone; its step depends on the gradients seen before.")
    findings = certify(new, devices=["cpu"])
    failed = [finding for finding in findings if finding.verdict == "does not"]
    holds = sum(finding.verdict == "holds" for finding in findings)
    lines.append(f"**Certificate**: {holds} checks hold, {len(failed)} do not" + (":" if failed else "."))
    if failed:
        lines.append("\n".join(f"- {finding.check}: {finding.detail}" for finding in failed))
    return "\n\n".join(lines)
