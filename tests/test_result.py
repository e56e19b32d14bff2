"""result.json: strict, sealed, checked when it is read, and of older schemas as well."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tmbench.config.identity import SCHEMA
from tmbench.errors import DataError
from tmbench.result import Result, versions

Json = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Result(
        run_id="tc-sgd-0-0", status="completed", task="tc", optimizer="sgd", seed=0, profile="tiny",
        protocol="reconciled", split="test", metric="accuracy", higher_is_better=True,
        metrics={"last": {"test/accuracy": 0.8}, "best": {"test/accuracy": 0.8, "epoch": 1}}, seconds=1.0,
        epochs={"asked": 2, "trained": 2, "from_trunk": 0}, steps=10, examples_per_second=1.0, peak_memory_bytes=1,
        parameters=1, switch={"requested": None, "effective": None, "step": None}, versions=versions(),
        hardware="1 x a CPU", git_commit=None, data_digest="0", command="python -m tmbench", started="2026-01-01",
        evaluation_seconds=3.0,
    ).save(tmp_path)  # fmt: skip
    return tmp_path


def content(folder: Path) -> Json:
    return json.loads((folder / "result.json").read_text())


def as_schema_1(folder: Path, **own: Any) -> None:
    """Writes the result as the first schema had it: split and metric in one field, no digest."""
    old = content(folder) | {"headline": "test/accuracy", "schema_version": 1}
    for later in ("split", "metric", "evaluation_seconds", "sha256"):
        del old[later]
    (folder / "result.json").write_text(json.dumps(old | own))


def test_result_is_strict_json_that_ends_with_its_digest(folder: Path) -> None:
    assert list(content(folder))[-1] == "sha256"
    assert content(folder)["schema_version"] == SCHEMA
    result = Result.load(folder)
    assert result
    assert (result.split, result.metric, result.headline) == ("test", "accuracy", "test/accuracy")
    result.seconds = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        result.save(folder)
    assert Result.load(folder)  # the old one
    (folder / "result.json").write_text('{"status": "completed"}')
    with pytest.raises(DataError, match=r"result\.json: .*not what this program writes"):
        Result.load(folder)


def test_result_of_an_older_schema_is_still_read_and_its_epochs_count_from_1(folder: Path) -> None:
    as_schema_1(folder, diverged_at={"epoch": 0, "step": 3})
    result = Result.load(folder)
    assert result
    assert (result.split, result.metric, result.schema_version) == ("test", "accuracy", 1)
    assert result.evaluation_seconds == 0.0
    assert (result.metrics["best"]["epoch"], result.diverged_at) == (2, {"epoch": 1, "step": 4})
    for schema, epoch in ((3, 2), (4, 1)):
        replace(result, schema_version=schema, metrics={"last": {}, "best": {"epoch": 1}}).save(folder)
        assert (newer := Result.load(folder))
        assert newer.metrics["best"]["epoch"] == epoch


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"seed": "0"}, "seed: input should be a valid integer, got '0'"),
        ({"metrics": {"last": {"test/accuracy": None}}}, "metrics.last.test/accuracy: input should be a valid number"),
        ({"headline": 5}, "headline: expected a text such as test/accuracy, got 5"),
    ],
)
def test_wrong_type_in_a_file_changed_by_hand_is_refused_by_its_field(own: Json, message: str, folder: Path) -> None:
    as_schema_1(folder, **own)
    with pytest.raises(DataError, match=rf"result\.json: {re.escape(message)}"):
        Result.load(folder)
