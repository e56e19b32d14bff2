"""What came of a run: its record in result.json, made of what training measured, and checked when it is read."""

import base64
import csv
import json
import math
import platform
import zlib
from array import array
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import __version__, checkpoint
from .config.identity import SCHEMA, effective_switch, reads_switch
from .config.table import NEVER, STABLE
from .errors import DataError
from .files import checked, digest_of_text, loads, printable, read, read_sealed, write, write_sealed

NUMERIC = ("torch", "torchvision", "pytorch-lightning", "torchmetrics")  # whose versions may change the numbers
FINAL = ("completed", "diverged")  # not repeated unless forced
SHARES = ("accuracy", "top5_accuracy", "miou", "map")  # metrics that a person reads in percent
NEEDED = {
    "metrics": ("last", "best"),
    "epochs": ("asked", "trained", "from_trunk"),
    "switch": ("requested", "effective", "step"),
}
EXAMPLES = "examples.json"  # in the folder of a run
BOUNDED = (*SHARES, "auc")  # metrics between 0 and 1


@dataclass
class Result:
    """One run's result. Seconds are training alone, without set-up and evaluation, the shared trunk's included.

    `folder`, no field of it, is the run's folder; None of a result that was not read from, or written to, a folder.
    """

    run_id: str  # the name of its folder
    status: str  # completed, diverged, interrupted or failed
    task: str  # as in task=
    optimizer: str  # as in optimizer=
    seed: int  # of first weights, batches and noise
    profile: str  # tiny, full or subset
    protocol: str  # reconciled or as_printed
    split: str  # what was evaluated: test, or validation
    metric: str  # what ranks runs; `headline` is its key in the metrics
    higher_is_better: bool  # of the metric
    metrics: dict[str, dict[str, float]]  # last and best; best also says its epoch
    seconds: float  # of training
    epochs: dict[str, int]  # asked, trained, and how many of those came from the trunk that it shares
    steps: int  # of the optimizer
    examples_per_second: float  # while training
    peak_memory_bytes: int  # of the GPU; on a CPU the process's resident set
    parameters: int  # trainable
    switch: dict[str, int | str | None]  # requested, effective (epochs before it), step; None: no switch
    versions: dict[str, str]  # of tmbench, Python and what may change the numbers
    hardware: str  # devices and threads
    git_commit: str | None  # of tmbench, with + where a file was changed; None: installed
    data_digest: str  # of all files that were read
    command: str  # that does this run again
    started: str  # UTC
    diverged_at: dict[str, int] | None = None  # epoch, step in it
    nondeterministic: list[str] = field(default_factory=list)  # operations without a deterministic kernel
    notes: list[str] = field(default_factory=list)  # what a reader of the numbers should know
    error: str | None = None  # of a run that failed
    baseline: dict[str, float] = field(default_factory=dict)  # of a predictor that never looks at its input
    evaluation_seconds: float = 0.0  # of evaluations between epochs
    overhead_seconds: float = 0.0  # all else of the process that finished the run: set-up, figures, loggers
    curves_sha256: str | None = None  # of curves.csv
    curvature: dict[str, Any] | None = None  # how it was measured; None: not
    replicas: int = 1  # slots of the stack that it was trained in; 1: by itself
    schema_version: int = SCHEMA  # of this file

    def __post_init__(self) -> None:
        self.folder: Path | None = None

    @property
    def headline(self) -> str:
        """The key of the metric that ranks runs, such as `test/accuracy`."""
        return f"{self.split}/{self.metric}"

    @property
    def score(self) -> float | None:
        """The headline metric after the last epoch so far; None of a run that diverged, or if it is not finite."""
        value = None if self.status == "diverged" else self.metrics["last"].get(self.headline)
        return value if value is not None and math.isfinite(value) else None

    @property
    def own_seconds(self) -> float:
        """Seconds of training and evaluation, less the share of the epochs that came from a shared trunk."""
        trained = self.epochs["trained"]
        share = (trained - self.epochs["from_trunk"]) / trained if trained else 1.0
        return share * (self.seconds + self.evaluation_seconds)

    def save(self, folder: Path) -> None:
        """Writes result.json, whose last key is the sha256 of the others; ValueError if a number is not finite."""
        write(folder / "result.json", _sealed(asdict(self)))
        self.folder = folder

    @classmethod
    def load(cls, folder: Path) -> "Result | None":
        """The result in a run's folder, if there is one.

        Raises:
            DataError: there is one that is damaged, or not ours.
        """

        def parse(text: bytes) -> Result:
            content = loads(text)
            unsealed = content.pop("sha256", None) is None and content["schema_version"] == 1  # which had no digest
            if unsealed or text == _sealed(content).encode():  # byte for byte, so that no damage is too small
                return cls.from_dict(content)
            raise DataError("damaged: its content does not match its sha256")

        try:
            result = read(folder / "result.json", parse, "the run's own command writes it again")
        except FileNotFoundError:
            return None
        result.folder = folder
        return result

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Result":
        """The result whose fields these are, of this or an older schema.

        Raises:
            DataError: a field is missing or of a wrong type; the message names it.
        """
        if "headline" in content:  # schemas 1 and 2
            headline = content.pop("headline")
            if not isinstance(headline, str):
                raise DataError(f"headline: expected a text such as test/accuracy, got {headline!r}")
            content["split"], _, content["metric"] = headline.partition("/")
        checked(cls, content)  # numbers stay as they are: 1 where 1.0 may be
        needed = NEEDED | ({"diverged_at": ("epoch", "step")} if content.get("diverged_at") else {})
        for name, keys in needed.items():
            if missing := [key for key in keys if key not in content[name]]:
                raise DataError(f"{name}: expected {' and '.join(missing)} in it, got {content[name]!r:.100}")
        if content.get("schema_version", 1) < 4:  # which counted from 0
            for place in (content["metrics"]["best"], content.get("diverged_at") or {}):
                place |= {name: place[name] + 1 for name in ("epoch", "step") if name in place}
        content = printable(content)
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def _repr_html_(self) -> str:
        """A table and the learning curves, which a notebook shows of it."""
        key, last, best, at = self.headline, self.metrics["last"], self.metrics["best"], self.diverged_at
        when = f", best {shown(best.get(key), key)} after epoch {best['epoch']:.0f}" if "epoch" in best else ""
        facts = [
            (self.metric, f"{shown(last.get(key), key)}{when}, on {self.profile} data ({self.split} split)"),
            ("baseline", shown(self.baseline.get(key), key)),
            ("status", self.status + (f" in epoch {at['epoch']}, step {at['step']}" if at else "")),
            ("switch", "none" if self.switch["step"] is None else f"after epoch {self.switch['effective']}"),
            ("training", f"{self.epochs['trained']} of {self.epochs['asked']} epochs, {self.seconds:.1f} s"),
            ("folder", str(self.folder or "-")),
            *(("note", note) for note in self.notes),
            *([("error", self.error)] if self.error else []),
        ]
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>" for name, text in facts)
        head = escape(f"{self.task} {self.optimizer} seed={self.seed}")
        return f"<table><caption>{head}</caption>{rows}</table>{self._picture()}"

    def _picture(self) -> str:
        """The learning curves as an image in HTML; nothing if there are none that can be read."""
        try:
            text = counted_from_1(read(self.folder / "curves.csv", bytes.decode)) if self.folder else ""
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(text.splitlines())]
        except (OSError, ValueError, TypeError):
            return ""
        if not rows or any("epoch" not in row for row in rows):
            return ""
        from .figures import curves, svg  # matplotlib

        switch = self.switch["effective"]
        figure = curves(rows, self.headline, switch if isinstance(switch, int) else None)
        image = base64.b64encode(svg(figure, self.run_id).encode()).decode()
        about = escape(f"Training loss and {self.headline} after each epoch")
        return f'<img alt="{about}" style="max-width: 100%" src="data:image/svg+xml;base64,{image}"/>'


@dataclass
class _Examples:
    """The content of examples.json."""

    key: str
    count: int
    float32: str  # in the machine's order of bytes, by zlib and base64
    higher_is_better: bool | None = None  # None, in older files: as of the headline


@dataclass(frozen=True)
class ExampleScores:
    """One number an example of a run's last evaluation, in its order; their mean is one of the run's metrics."""

    key: str  # of that metric: test/accuracy
    higher_is_better: bool | None  # of that metric; None: as of the headline, which it is
    scores: "array[float]"


def save_examples(folder: Path, key: str, higher_is_better: bool, scores: list[float]) -> None:
    """Keeps what `examples_of` gives."""
    packed = base64.b64encode(zlib.compress(array("f", scores).tobytes())).decode()
    content = {"key": key, "count": len(scores), "float32": packed, "higher_is_better": higher_is_better}
    write_sealed(folder / EXAMPLES, content)


def examples_of(folder: Path) -> ExampleScores | None:
    """What save_examples has kept; None if nothing, as by older versions, or several processes.

    Raises:
        DataError: the file is damaged.
    """
    try:
        kept: _Examples = read_sealed(folder / EXAMPLES, _Examples, "remove it, and nothing is known of the examples")
    except FileNotFoundError:
        return None
    unpacked = zlib.decompressobj().decompress(base64.b64decode(kept.float32), 4 * kept.count)
    return ExampleScores(kept.key, kept.higher_is_better, array("f", unpacked))


def finished(
    cfg: Mapping[Any, Any], folder: Path, rows: list[dict[str, float]], *, steps_an_epoch: int, examples_an_epoch: int,
    from_trunk: int, switched_at: int | None, divergence: str | None, notes: list[str], **measured: Any,
) -> Result:  # fmt: skip
    """The result of a run that has ended, however it ended.

    Args:
        cfg: settled.
        folder: the run's.
        rows: of its curves, one an epoch.
        from_trunk: epochs that another run trained.
        switched_at: the step at which the method changed.
        divergence: what is no longer finite.
        notes: of the training; those that follow from its numbers are added.
        measured: the other fields of the result, as they are.
    """
    seconds, trained = measured["seconds"], len(rows)
    effective = effective_switch(cfg)
    if effective is None and switched_at is not None:
        effective = switched_at // steps_an_epoch
    result = Result(
        run_id=folder.name,
        task=cfg["task"]["name"],
        optimizer=cfg["optimizer"]["name"],
        seed=cfg["seed"],
        protocol=cfg["protocol"]["name"],
        metrics={
            "last": {key: value for key, value in newest(rows).items() if "/" in key},
            "best": measured.pop("best"),
        },
        epochs={"asked": cfg["epochs"], "trained": trained, "from_trunk": from_trunk},
        steps=trained * steps_an_epoch,
        examples_per_second=trained * examples_an_epoch / seconds if seconds else 0.0,
        switch={
            "requested": cfg["switch_epoch"] if reads_switch(cfg) else None,
            "effective": effective,
            "step": switched_at,
        },
        versions=versions(),
        **measured,
    )
    switch, epochs = cfg["switch_epoch"], cfg["epochs"]
    if result.profile == "subset":
        result.notes.append("the data files are not the published set: labelled subset, not comparable with full")
    if reads_switch(cfg) and switch not in (NEVER, STABLE) and switch >= epochs:
        result.notes.append(f"switch_epoch={switch} is not before the end ({epochs} epochs): it never switched")
    result.notes += notes
    if divergence:
        result.notes.append(f"diverged: {divergence}")
    evaluated = [int(row["epoch"]) for row in rows if result.headline in row]
    if evaluated and (divergence or evaluated[-1] < trained):
        result.notes.append(f"the last metrics are those after epoch {evaluated[-1]}")
    return result


def counted_from_1(curves: str) -> str:
    """The text of curves.csv with its first epoch as 1; files of schemas 1 to 3 count from 0."""
    head, _, rest = curves.partition("\n")
    names = head.strip().split(",")
    at = names.index("epoch") if "epoch" in names else len(names)
    if rest.partition("\n")[0].split(",")[at : at + 1] not in (["0"], ["0.0"]):
        return curves
    lines = [line.split(",") for line in rest.splitlines()]
    for line in lines:
        with suppress(IndexError, ValueError):  # of a damaged file; who reads the numbers says so
            line[at] = str(int(float(line[at])) + 1)
    return "\n".join([head, *map(",".join, lines)]) + "\n"


def uses_of_limit(row: Mapping[str, float], after_switch: bool = False) -> list[float]:
    """The share of the stability limit that the step uses, of each player: see training.curvature; none if not known.

    Args:
        row: of curves, or the metrics of a result.
        after_switch: of the method after the switch, in place of the one at work.
    """
    column = "curvature/used"
    after = f"{column}_after_switch"
    return [v for key, v in row.items() if key.startswith(column) and key.startswith(after) == after_switch]


def newest(rows: list[dict[str, float]]) -> dict[str, float]:
    """The last value of everything in the rows of curves; that of a metric may be from an earlier epoch."""
    return {name: value for row in rows for name, value in row.items()}


def _sealed(facts: dict[str, Any]) -> str:
    digest = digest_of_text(json.dumps(facts, indent=2, allow_nan=False))
    return json.dumps(facts | {"sha256": digest}, indent=2, allow_nan=False) + "\n"


def versions() -> dict[str, str]:
    """The versions of this program and of what computes its numbers, without importing them."""
    return {"tmbench": __version__, "python": platform.python_version(), **_installed()}


@cache
def _installed() -> dict[str, str]:
    return {name: version(name) for name in NUMERIC}


def shown(value: float | None, key: str) -> str:
    """A metric as a person reads it: shares in percent."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if key.split("/")[-1] in SHARES else f"{value:.4g}"


def epochs_done(folder: Path) -> int:
    """How many epochs the run in `folder` has on disk."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.is_file():
        return 0
    if (noted := checkpoint.epochs(last)) is not None:
        return noted
    # A checkpoint of an older version, or a damaged one.
    try:
        return max(1, len(read(folder / "curves.csv", bytes.splitlines)) - 1)
    except (FileNotFoundError, DataError):
        return 1
