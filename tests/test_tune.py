"""Fair tuning: equal budgets, a choice that never saw the test split, and a study that survives a kill."""

import copy
import json
import re
import shlex
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import choices
from damage import ways
from forked import Forked
from omegaconf import OmegaConf

from tmbench.config.compose import composed
from tmbench.config.identity import identity, run_id
from tmbench.config.settle import settle, settled
from tmbench.config.table import conf_dir
from tmbench.errors import ConfigError, DataError
from tmbench.files import read_sealed, write_sealed
from tmbench.report import statistics
from tmbench.result import Result
from tmbench.sweeps import plan as sweeps_plan
from tmbench.tune import plan as plan_module
from tmbench.tune import study as study_module
from tmbench.tune.__main__ import main
from tmbench.tune.plan import Plan, plan_of
from tmbench.tune.space import all_of, space_of, values_of
from tmbench.tune.study import study
from tmbench.tune.summary import interval, summary
from tmbench.tune.trials import Outcome, Trial, next_point


@cache
def known(*words: str, name: str = "config") -> Any:
    return composed(list(words), name)


def composed_once(words: list[str], name: str = "config") -> Any:
    """As `composed`, but whatever runs_dir is, each configuration once for all tests: it takes most of their time."""
    rest = [word for word in words if not word.startswith("runs_dir=")]
    return copy.deepcopy(known(*rest, name=name)) | dict(w.split("=", 1) for w in words if w not in rest)


# The space


def declared(**optimizers: Any) -> dict[str, Any]:
    return {"name": "mine", "common": {"lr": {"low": 0.1, "high": 1, "log": True}}, "optimizers": optimizers}


def space(optimizer: str, own: Any, *overrides: str) -> Any:
    raw = composed_once(["task=tc", f"optimizer={optimizer}", *overrides])
    return space_of(declared(**{optimizer: own}), raw)


def test_a_space_is_the_common_part_with_what_the_optimizer_changes() -> None:
    assert space("sgd", {}) == {"lr": {"low": 0.1, "high": 1.0, "log": True}}
    own = {"lr": [0.5], "optimizer.betas": [[0.9, 0.99], [0.8, 0.99]], "batch_size": {"low": 2, "high": 8}}
    found = space("adam", own)
    assert found["lr"] == {"choices": [0.5]}
    assert found["batch_size"] == {"low": 2, "high": 8, "log": False}
    drawn = values_of(found, {"lr": 0, "optimizer.betas": 1, "batch_size": 3})
    assert drawn == {"lr": 0.5, "optimizer.betas": [0.8, 0.99], "batch_size": 3}
    assert len(all_of(found)) == 2 * 7


def test_shares_of_the_run_become_whole_epochs_inside_it() -> None:
    for values, whole in (
        ({"low": 0.1, "high": 0.9}, {"low": 2, "high": 14, "log": False}),
        ({"low": 3, "high": 9}, {"low": 3, "high": 9, "log": False}),
        ([0.01, 0.02, 0.5, 0.99, "never", 0], {"choices": [1, 8, 15, "never", 0]}),
        ({"low": 0.5, "high": 0.52}, {"choices": [8]}),
    ):
        assert space("tmsgd", {"switch_epoch": values}, "epochs=16")["switch_epoch"] == whole


@pytest.mark.parametrize(
    ("optimizer", "own", "message"),
    [
        ("sgd", {"lrr": [1, 2]}, r"space=mine, lrr of sgd: there is no such setting; did you mean lr\?"),
        ("sgd", {"optimizer.momentun": [0.9]}, "did you mean optimizer.momentum"),
        ("sgd", {"seed": [1, 2]}, "seed of sgd: expected something to tune"),
        ("sgd", {"trainer.accumulate": [1, 2]}, "expected something to tune"),
        ("sgd", {"switch_epoch": [1, 2]}, "this optimizer does not read it"),
        ("tmsgd", {"switch_epoch": [1, 16]}, "expected epochs from 0 to 15, shares between 0 and 1, got 16"),
        ("sgd", {"lr": {"low": 1, "high": 1}}, "expected low < high, got 1 and 1"),
        ("sgd", {"lr": {"low": 2, "high": 1}}, "expected low < high, got 2 and 1"),
        ("sgd", {"lr": {"low": 0, "high": 1, "log": True}}, "expected low > 0 where log is true, got 0"),
        ("sgd", {"lr": {"low": 0, "high": 1}}, "lr: expected a number > 0, got 0.0"),
        ("sgd", {"lr": {"low": 0.1, "hi": 1}}, "perhaps with log: true"),
        ("sgd", {"lr": {"low": "a", "high": 1}}, "expected low and high to be numbers"),
        ("sgd", {"lr": {"low": 0.1, "high": float("inf")}}, "expected low and high to be numbers"),
        ("sgd", {"lr": []}, "expected choices, each once"),
        ("sgd", {"lr": [0.1, 0.1]}, "expected choices, each once"),
        ("sgd", {"lr": 0.1}, "perhaps with log: true"),
        ("sgd", {"lr": [0.1, "fast"]}, "lr: expected a number > 0, got 'fast'"),
        ("sgd", {"task.weight_decay": [-1.0]}, "task.weight_decay: expected a number >= 0, got -1.0"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_runs(optimizer: str, own: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(optimizer, own)


def test_an_optimizer_without_a_space_is_told_where_to_put_it() -> None:
    with pytest.raises(ConfigError, match=r"nothing is declared for optimizer=lbfgs, only for sgd\n.*lbfgs: \{\}"):
        space_of(declared(sgd={}), composed_once(["task=tc", "optimizer=lbfgs"]))
    with pytest.raises(ConfigError, match="expected common and optimizers, got extra"):
        space_of(declared(sgd={}) | {"extra": 1}, composed_once(["task=tc", "optimizer=sgd"]))


@pytest.mark.parametrize("name", choices("space"))
def test_every_declared_space_fits_its_optimizers(name: str) -> None:
    content: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "space" / f"{name}.yaml"))
    assert content["name"] == name
    for optimizer in content["optimizers"]:
        assert optimizer in choices("optimizer")
        space_of(content, composed_once(["task=tc", f"optimizer={optimizer}"]))


# A study

DATA = (None, "tiny", "0")  # what the runs are on, and its digest


class Fake:
    """Stands for training: a run's result follows from its settings, and is on disk as a run's is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.words: list[list[str]] = []  # of each call
        self.stop_after = 10**9  # runs
        self.fails: Any = lambda cfg: False
        self.diverges: Any = lambda cfg: cfg.lr > 0.5
        self.baseline: dict[str, float] = {}
        monkeypatch.setattr(study_module, "run", self.run)
        monkeypatch.setattr(plan_module, "composed", composed_once)
        for module in (plan_module, sweeps_plan):
            monkeypatch.setattr(module, "open_dataset", lambda cfg, cls: DATA)

    def run(
        self, cfg: Any, command: str, until: int | None = None, words: list[str] | None = None
    ) -> tuple[Result, Path, str]:
        assert words is not None
        assert command == shlex.join(["python", "-m", "tmbench", *words])
        cfg = settle(cfg)
        folder = Path(cfg.runs_dir) / run_id(cfg, DATA[2])
        if (known := Result.load(folder)) and known.status in ("completed", "diverged"):
            return known, folder, "shown"
        if len(self.calls) >= self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(cfg)
        self.words.append(words)
        if self.fails(cfg):
            raise RuntimeError("out of memory")
        split = "validation" if cfg.validation else "test"
        if split == "test":
            assert list(Path(cfg.runs_dir).glob(".tune/*/choice.json")), "the choice is not frozen yet"
        switch = cfg.switch_epoch if "switch_step" in cfg.optimizer else 0
        value = 0.9 - abs(float(np.log10(cfg.lr)) + 1) / 10 + 0.01 * switch + 0.001 * cfg.seed
        status = "diverged" if self.diverges(cfg) else "completed"
        done = until or cfg.epochs
        if until and status == "completed":
            status = "interrupted"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        (folder / "curves.csv").write_text("\n".join(["epoch"] + ["1"] * done))
        result = Result(
            run_id=folder.name, status=status, task="tc", optimizer=cfg.optimizer.name, seed=cfg.seed, profile="tiny",
            protocol="reconciled", split=split, metric="accuracy", higher_is_better=True,
            metrics={"last": {f"{split}/accuracy": value}, "best": {}}, seconds=float(done), steps=1,
            epochs={"asked": cfg.epochs, "trained": done, "from_trunk": 0}, examples_per_second=1.0,
            peak_memory_bytes=1, parameters=1, switch={"requested": None, "effective": None, "step": None}, versions={},
            hardware="a fake", git_commit=None, data_digest="0", command=command,
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            diverged_at={"epoch": 1, "step": 1} if status == "diverged" else None, baseline=self.baseline,
        )  # fmt: skip
        result.save(folder)
        return result, folder, "new"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def asked(folder: Path, *words: str) -> list[str]:
    return ["task=tc", "optimizer=tmsgd,sgd", "trials=4", "seeds=3", "name=s", f"runs_dir={folder}", *words]


def alone(folder: Path, *words: str) -> list[str]:
    return asked(folder, "optimizer=sgd", "seeds=1", *words)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        Fake(patch)
        assert main(alone(folder)) == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, fake: Fake, tmp_path: Path) -> Path:
    """The runs_dir of a finished study of one optimizer, of the test's own."""
    return shutil.copytree(finished_once, tmp_path, dirs_exist_ok=True)


def outcome(folder: Path, name: str = "s") -> dict[str, Any]:
    """A study's result, which must be strict JSON."""
    return json.loads((folder / ".tune" / name / "result.json").read_text(), parse_constant=pytest.fail)


def timeless(result: dict[str, Any]) -> str:
    """A study's result without what is of the moment."""
    return re.sub(r"2\d\d\d-\d\d-\d\dT[\d:]*Z", "", json.dumps(result))


def test_every_optimizer_has_the_same_budget_and_the_choice_is_the_best_of_its_own(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(asked(tmp_path)) == 0
    result = outcome(tmp_path)
    told = capsys.readouterr().out
    for name in ("tmsgd", "sgd"):
        own = result["optimizers"][name]
        assert own["used"]["trials"] == len(own["trials"]) == 4
        finite = [t for t in own["trials"] if t["value"] is not None]
        assert own["choice"]["value"] == max(t["value"] for t in finite)
        assert own["used"]["device_seconds"] == 4 * 16
        assert [r["seed"] for r in own["confirmation"]["runs"]] == [1, 2, 3]
        assert own["confirmation"]["n"] == 3
        assert name in told
    # Before anything is learned, both are drawn the same rates.
    first = [[t["values"]["lr"] for t in result["optimizers"][name]["trials"]][:2] for name in ("tmsgd", "sgd")]
    assert first[0] == first[1]
    assert list(result["optimizers"]["tmsgd"]["space"]) == ["lr", "switch_epoch"]
    assert list(result["optimizers"]["sgd"]["space"]) == ["lr"]
    assert result["budget"] == {"trials": 4, "epochs": 16, "seed": 0, "sampler": "tpe", "pruner": "none"}
    assert result["test"]["read_only_after_it"] is True
    assert (result["schema_version"], result["split"], result["metric"]) == (3, "test", "accuracy")
    confirmed = [c for c in fake.calls if c.validation is None]
    assert fake.calls[-6:] == confirmed
    assert {c.seed for c in fake.calls[:-6]} == {0}
    switches = {c.switch_epoch for c in confirmed if c.optimizer.name == "tmsgd"}
    assert switches == {result["optimizers"]["tmsgd"]["choice"]["values"]["switch_epoch"]}


def test_confirming_runs_of_before_the_choice_are_told(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(alone(finished)) == 0
    assert "read only after the choice was frozen" in capsys.readouterr().out
    assert main(alone(finished, "name=again")) == 0
    assert "1 of the confirming runs were begun before the choice" in capsys.readouterr().out
    again = outcome(finished, "again")
    assert again["test"]["read_only_after_it"] is False
    assert again["optimizers"]["sgd"]["used"]["known_before"] == 4
    assert again["optimizers"]["sgd"]["used"]["device_seconds"] == 0


class Kills:
    """Ends a study, as a kill does, before or after a random one of the moments at which it draws, notes or runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        for name in ("next_point", "write_sealed", "run"):
            monkeypatch.setattr(study_module, name, self.around(getattr(study_module, name)))

    def around(self, function: Any) -> Any:
        def called(*args: Any, **more: Any) -> Any:
            self.strike()
            value = function(*args, **more)
            self.strike()
            return value

        return called

    def strike(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_study_killed_at_random_moments_ends_as_one_never_stopped(
    sampler: str, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (f"sampler={sampler}", "optimizer=tmsgd", "trials=6", "seeds=2")
    assert main(asked(tmp_path / "whole", *words)) == 0
    whole, calls = timeless(outcome(tmp_path / "whole")), len(fake.calls)
    kills, random = Kills(monkeypatch), np.random.default_rng(0)
    codes = []
    while not codes or codes[-1]:
        kills.left = int(random.integers(1, 15))
        codes.append(main(asked(tmp_path / "parts", *words)))
    assert set(codes[:-1]) == {130}
    assert len(codes) > 5
    assert timeless(outcome(tmp_path / "parts")) == whole.replace(str(tmp_path / "whole"), str(tmp_path / "parts"))
    assert len(fake.calls) == 2 * calls


@pytest.fixture
def plan(fake: Fake, tmp_path: Path) -> Plan:
    values, words = main.parse(alone(tmp_path))
    return plan_of(values, words)


def test_a_trial_without_an_outcome_is_no_evidence_to_the_sampler_which_models_pairs(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna's constant liar would count it as a bad one; what its sampler does by default is its version's choice."""
    import optuna

    made, given = optuna.samplers.TPESampler, dict[str, Any]()
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **settings: given.update(settings) or made(**settings))
    done = [Trial(i, "", False, {"lr": lr}, outcome=Outcome("completed", lr)) for i, lr in enumerate((0.1, 0.5, 0.9))]
    points = []
    for lr in (0.002, 0.8):
        for outcome in (None, Outcome("failed")):
            trial = Trial(3, "", False, {"lr": lr}, outcome=outcome)
            points.append(next_point(plan, plan.contenders[0], [*done, trial]))
    assert points == points[:1] * 4
    assert given["multivariate"]


def test_a_grid_tries_each_point_once_and_then_again_as_the_same_run(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["space=switch", "sampler=grid", "trials=5", "epochs=4", "seeds=1"]
    assert main(asked(tmp_path, *words)) == 0
    own = outcome(tmp_path)["optimizers"]
    tried = [t["values"]["switch_epoch"] for t in own["tmsgd"]["trials"]]
    assert sorted(tried[:3]) == [1, 2, 3]
    assert tried[3:] == tried[:2]
    assert own["tmsgd"]["used"]["known_before"] == 2
    assert own["tmsgd"]["used"]["device_seconds"] == 3 * 4
    assert own["sgd"]["used"]["trials"] == 5
    assert own["sgd"]["used"]["device_seconds"] == 4
    assert own["tmsgd"]["choice"]["values"] == {"switch_epoch": 3}
    assert main(asked(tmp_path, "sampler=grid")) == 1
    assert "sampler=grid: expected choices or whole numbers, but lr is continuous" in capsys.readouterr().err


@pytest.mark.slow
def test_a_median_pruner_ends_what_is_behind_and_counts_what_it_took(fake: Fake, tmp_path: Path) -> None:
    fake.diverges = lambda cfg: False
    assert main(alone(tmp_path, "pruner=median", "trials=10")) == 0
    own = outcome(tmp_path)["optimizers"]["sgd"]
    pruned = [t for t in own["trials"] if t["status"] == "pruned"]
    assert 0 < len(pruned) == own["used"]["pruned"] < 10
    assert all(t["value"] is None and t["device_seconds"] in (4, 8, 12) for t in pruned)
    assert own["choice"]["number"] not in {t["number"] for t in pruned}


def test_diverged_trials_count_as_the_worst_and_are_told_also_on_a_narrow_terminal(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    fake.diverges = lambda cfg: cfg.lr > 0.01 and cfg.validation
    assert main(alone(tmp_path, "trials=6")) == 0
    own = outcome(tmp_path)["optimizers"]["sgd"]
    bad = [t for t in own["trials"] if t["values"]["lr"] > 0.01]
    assert 0 < len(bad) == own["used"]["diverged"] < 6
    assert all(t["status"] == "diverged" and t["value"] is None for t in bad)
    assert own["choice"]["values"]["lr"] <= 0.01
    told = capsys.readouterr().out
    assert f"6, {len(bad)} diverged" in told
    lines = told.partition("\nfiles")[0].splitlines()
    assert (max(map(len, lines)) <= 60, "…" in told) == (True, False)


def test_an_optimizer_whose_trials_all_diverge_has_no_choice_and_the_others_go_on(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.diverges = lambda cfg: cfg.optimizer.name == "sgd"
    assert main(asked(tmp_path)) == 0
    result = outcome(tmp_path)
    assert result["optimizers"]["sgd"]["choice"] is None
    assert result["optimizers"]["sgd"]["confirmation"]["runs"] == []
    assert result["differences"]["tmsgd - sgd"]["n"] == 0
    assert "none: no trial reached a finite value" in capsys.readouterr().out
    assert main(alone(tmp_path, "name=alone")) == 1  # with nobody else nothing is frozen
    assert "sgd: no trial reached a finite value" in capsys.readouterr().err
    assert not (tmp_path / ".tune" / "alone" / "choice.json").exists()


def test_failed_trials_are_told_and_tried_again_before_anything_is_chosen(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.fails = lambda cfg: len(fake.calls) in (2, 3)
    assert main(alone(tmp_path)) == 1
    told = capsys.readouterr().err
    assert "sgd: 2 of 4 trials failed, so nothing is chosen yet" in told
    assert "RuntimeError: out of memory" in told
    assert not (tmp_path / ".tune" / "s" / "choice.json").exists()
    assert main(alone(tmp_path)) == 0
    own = outcome(tmp_path)["optimizers"]["sgd"]
    assert own["used"]["trials"] == own["used"]["completed"] + own["used"]["diverged"] == 4
    assert all(t["error"] is None for t in own["trials"])


def test_a_diverged_confirmation_counts_as_the_worse_of_baseline_and_worst_seen(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.diverges = lambda cfg: cfg.seed == 2 and cfg.optimizer.name == "sgd"
    fake.baseline = {"test/accuracy": 0.125, "validation/accuracy": 0.5}
    assert main(asked(tmp_path)) == 0
    result = outcome(tmp_path)
    confirmed, difference = result["optimizers"]["sgd"]["confirmation"], result["differences"]["tmsgd - sgd"]
    values = [run["counts_as"] for run in confirmed["runs"]]
    assert [run["value"] for run in confirmed["runs"]] == [values[0], None, values[2]]
    assert values[1] == result["test"]["diverged_count_as"] == 0.125
    assert (confirmed["n"], confirmed["diverged"]) == (difference["n"], difference["diverged"]) == (3, 1)
    assert confirmed["mean"] == pytest.approx(np.mean(values))
    assert confirmed["interval"] == [0, 1]  # of a share
    others = [run["value"] for run in result["optimizers"]["tmsgd"]["confirmation"]["runs"]]
    assert difference["mean"] == pytest.approx(np.mean(np.subtract(others, values)))
    told = capsys.readouterr().out
    assert "0.00 % to 100.00 %, n=3, 1 diverged" in told
    assert "diverged   they count as the worse of the baseline and the worst score, 12.50 %" in told
    # Without a baseline there is no mean and no interval.
    shutil.rmtree(tmp_path)
    fake.baseline = {}
    assert main(asked(tmp_path)) == 0
    result = outcome(tmp_path)
    for own in (result["optimizers"]["sgd"]["confirmation"], result["differences"]["tmsgd - sgd"]):
        assert (own["n"], own["diverged"], own["mean"], own["interval"]) == (3, 1, None, None)
    assert result["optimizers"]["tmsgd"]["confirmation"]["mean"] is not None
    assert result["test"]["diverged_count_as"] is None
    told = capsys.readouterr().out
    assert "n=3, 1 diverged: no interval" in told
    assert "diverged   they are worse than every completed run, by an unknown amount" in told


def test_another_question_is_refused_and_the_way_out_told(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.stop_after = 1
    assert main(asked(tmp_path)) == 130
    for change, message in {
        "space.common.lr.high=0.9": "tmsgd.space.lr.high: was 1.0, is 0.9",
        "trials=5": "trials: was 4, is 5",
        "seeds=[7]": "seeds: was [1, 2, 3], is [7]",
        "validation=0.3": "validation: was 0.2, is 0.3",
        "epochs=15": "tmsgd.runs.epochs: was 16, is 15",
        "optimizer=tmsgd": "sgd.space.lr.low: was 0.001, is None",
    }.items():
        assert main(asked(tmp_path, change)) == 1
        told = capsys.readouterr().err
        assert message in told
        assert "give the same settings as before to resume it, say name=... for a new study, or remove the" in told
    assert len(fake.calls) == 1


def test_one_changed_byte_of_a_study_is_noticed_wherever_it_is(finished: Path, fake: Fake) -> None:
    plan, random = plan_of(*main.parse(alone(finished))), np.random.default_rng(0)
    for name, remedy in {
        "study.json": "say name=... for a new study, or remove",
        "trials.json": "remove it: the same command asks for the same trials",
        "choice.json": "remove it: the same command chooses again",
    }.items():
        path = plan.folder / name
        kept = path.read_bytes()
        for place in random.choice(len(kept), 20, replace=False):
            changed = bytearray(kept)
            changed[place] ^= 1 << int(random.integers(8))
            path.write_bytes(changed)
            with pytest.raises(DataError, match=f"{name}: damaged: .*; {re.escape(remedy)}"):
                study(plan)
        path.write_bytes(kept)
    assert study(plan)
    assert fake.calls == []


def test_a_study_of_another_version_is_named_with_what_is_wrong_in_it(finished: Path) -> None:
    plan = plan_of(*main.parse(alone(finished)))
    for name, change, message in (
        ("trials.json", lambda facts: facts["sgd"][1].pop("run"), r"trials.json: sgd\.1\.run: field required"),
        ("choice.json", lambda facts: facts.update(begun_before=1), r"choice.json: begun_before: .*, got 1; remove it"),
    ):
        kept = (plan.folder / name).read_bytes()
        changed(plan.folder / name, change)
        with pytest.raises(DataError, match=message):
            study(plan)
        (plan.folder / name).write_bytes(kept)


def test_a_study_without_its_trials_or_its_choice_makes_the_same_again(finished: Path, fake: Fake) -> None:
    before = outcome(finished)["optimizers"]["sgd"]
    for name in ("trials.json", "choice.json"):
        (finished / ".tune" / "s" / name).unlink()
        assert main(alone(finished)) == 0
    after = outcome(finished)["optimizers"]["sgd"]
    assert after["choice"] == before["choice"]
    assert [t["values"] for t in after["trials"]] == [t["values"] for t in before["trials"]]
    assert fake.calls == []


def changed(path: Path, change: Any) -> None:
    """A sealed file, sealed again after a change."""
    facts = read_sealed(path)
    change(facts)
    write_sealed(path, facts)


def test_a_trial_s_run_that_is_gone_and_is_stopped_while_it_is_repeated_goes_on(
    finished: Path, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(alone(tmp_path)) == 0
    before = timeless(outcome(tmp_path))
    noted = read_sealed(tmp_path / ".tune" / "s" / "trials.json")["sgd"]
    gone = tmp_path / next(trial["run"] for trial in noted if trial["outcome"]["status"] == "completed")
    shutil.rmtree(gone)
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "run", lambda cfg, command, until, words: fake.run(cfg, command, 1, words))
        assert main(alone(tmp_path)) == 130
    stopped = Result.load(gone)
    assert stopped is not None
    assert stopped.status == "interrupted"
    assert main(alone(tmp_path)) == 0
    assert timeless(outcome(tmp_path)) == before


def test_trials_that_are_not_what_their_runs_say_are_refused_before_anything_is_chosen(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".tune" / "s" / "trials.json"
    (path.parent / "choice.json").unlink()
    kept = path.read_bytes()
    for change in (
        lambda facts: facts["sgd"][1]["outcome"].update(value=0.99),
        lambda facts: facts["sgd"][1]["outcome"].update(status="diverged"),
        lambda facts: facts["sgd"][1]["params"].update(lr=0.02),
    ):
        changed(path, change)
        assert main(alone(tmp_path)) == 1
        expected = (
            r"trials.json: sgd's trial 1 \(lr=.*\) is noted as tc-sgd-0-.*\n"
            r"  remove trials.json and choice.json, and the same command asks for the same trials again"
        )
        assert re.search(expected, capsys.readouterr().err)
        assert not (path.parent / "choice.json").exists()
        path.write_bytes(kept)
    assert main(alone(tmp_path)) == 0
    value = outcome(tmp_path)["optimizers"]["sgd"]["choice"]["value"]
    changed(path.parent / "choice.json", lambda facts: facts["choices"]["sgd"]["values"].update(lr=0.9))
    assert main(alone(tmp_path)) == 1
    assert "choice.json: its choices are not the best trials" in capsys.readouterr().err
    (path.parent / "choice.json").unlink()
    run = tmp_path / read_sealed(path)["sgd"][0]["run"]
    shutil.rmtree(run)
    assert main(alone(tmp_path)) == 0  # the run is repeated
    assert (run / "result.json").exists()
    assert outcome(tmp_path)["optimizers"]["sgd"]["choice"]["value"] == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trials=0", "trials: expected a whole number >= 1, got 0"), ("trials=2.5", "trials: expected a whole number"),
        ("trials=true", "trials: expected a whole number"), ("seeds=[1,1]", "seeds: expected a count"),
        ("seeds=0", "seeds: expected a count or a list of seeds, got 0"), ("seeds=[]", "seeds: expected a count"),
        ("seeds=[-1]", "seeds: expected a count"), ("validation=0", "validation: expected a number between 0 and 1"),
        ("validation=1.0", "validation: expected a"), ("sampler=best", "sampler: expected one of tpe, qmc, grid, got"),
        ("--pruner=all", "pruner: expected one of none, median"), ("name=..", "name: expected a word without slashes"),
        ("name=../x", "name: expected a word without slashes, got '../x'"),
        ("seeds=[3,0]", "seeds: expected fresh seeds, got [3, 0]; the trials have seed=0"),
        ("force=true", "force: this is a setting of runs and sweeps"),
        ("lr=0.1", "lr: space=default tunes it; leave it out of the command"),
        ("space=nope", "space=nope: there is no such choice"), ("optimizer=sgd,nope", "nope"),
        ("optimzer=sgd", "did you mean optimizer"), ("config_dir=no/such", "no/such: no such folder"),
        ("+optimizer.dampening=inf", "sgd.runs.optimizer.dampening: expected finite numbers in a study, got inf"),
        ("+optimizer.dampening=nan", "sgd.runs.optimizer.dampening: expected finite numbers in a study, got nan"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_refused_before_anything_runs(
    change: str, message: str, fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(alone(tmp_path, change)) in (1, 2)
    assert message in capsys.readouterr().err
    assert fake.calls == []
    assert not (tmp_path / ".tune").exists()


def test_a_person_can_write_a_space_of_their_own(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "conf" / "space").mkdir(parents=True)
    (tmp_path / "conf" / "space" / "mine.yaml").write_text(
        "name: mine\ncommon:\n  lr: [0.1, 0.2]\noptimizers:\n  sgd:\n    optimizer.momentum: [0.5]\n"
    )
    words = ["task=tc", "optimizer=sgd", "space=mine", "trials=2", "seeds=1", f"runs_dir={tmp_path}"]
    assert main([*words, "--config-dir", str(tmp_path / "conf")]) == 0
    assert {c.optimizer.momentum for c in fake.calls} == {0.5}
    # What each run keeps as asked for composes to it, with the person's own folder.
    for cfg, kept in zip(fake.calls, fake.words, strict=True):
        assert identity(settled(composed(kept)), "") == identity(cfg, "")
    assert outcome(tmp_path, "tc-sgd-tiny")["optimizers"]["sgd"]["choice"]["values"]["optimizer.momentum"] == 0.5


def test_the_interval_is_students_within_the_metric_s_limits() -> None:
    from scipy import stats

    values = [0.81, 0.84, 0.79, 0.86]
    own = summary([*values], (0, 1))
    assert own["n"] == 4
    assert own["interval"] == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    assert summary([0.9, 0.6], (0, 1))["interval"] == [0, 1]
    assert summary([0.9, 0.6], (-1, 1))["interval"] == [-1, 1]
    assert summary([0.9, 0.6], (-np.inf, np.inf))["interval"][1] > 2
    assert summary([0.5], (0, 1))["interval"] is None
    assert summary([], (0, 1))["mean"] is None
    nothing = {"mean": None, "deviation": None, "interval": None}
    assert summary([0.9, None, 0.8], (0, 1)) == {"n": 3, "level": 0.95} | nothing


def test_seeds_that_are_equal_but_for_float32_have_no_spread_and_give_no_interval() -> None:
    counts = np.array([100, 700, 1301, 1900, 2000], np.float32)
    a, b = (((counts + more) / np.float32(2189)).astype(float) for more in (30, 0))
    assert np.ptp(a - b) > 0
    near = [statistics.RESOLUTION * max(x, y) for x, y in zip(a, b, strict=True)]
    for own in (summary((a - b).tolist(), (-1.0, 1.0), near), summary([0.9] * 5, (0, 1))):
        assert (own["deviation"], own["interval"]) == (0.0, None)
        assert interval({**own, "diverged": 0}, "test/accuracy") == "n=5: no spread between seeds, no interval"


# Real runs

TINY = ["task=tc", "epochs=2", "batch_size=64"]


@pytest.mark.slow
def test_no_test_example_is_read_before_the_choice_is_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tmbench.tasks.tc.r8 import R8

    read, touched = R8.read, []

    def guarded(self: Any, split: str, variant: str = "clean") -> Any:
        if split == "test":
            touched.append(split)
            assert (tmp_path / ".tune" / "tc-tmsgd-sgd-tiny" / "choice.json").exists()
        return read(self, split, variant)

    monkeypatch.setattr(R8, "read", guarded)
    assert main([*TINY, "optimizer=tmsgd,sgd", "trials=2", "seeds=1", f"runs_dir={tmp_path}"]) == 0
    result = outcome(tmp_path, "tc-tmsgd-sgd-tiny")
    assert touched
    for own in result["optimizers"].values():
        for trial in own["trials"]:
            saved = Result.load(tmp_path / trial["run"])
            assert saved is not None
            assert trial["value"] == saved.metrics["last"]["validation/accuracy"]
        (confirmed,) = own["confirmation"]["runs"]
        saved = Result.load(tmp_path / confirmed["run"])
        assert saved is not None
        assert confirmed["value"] == saved.metrics["last"]["test/accuracy"]
        assert saved.command == confirmed["command"]
    # Known: shown again, without training.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tc-*/result.json")}
    assert main([*TINY, "optimizer=tmsgd,sgd", "trials=2", "seeds=1", f"runs_dir={tmp_path}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("tc-*/result.json")} == before


@pytest.mark.slow
def test_a_study_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    words = [*TINY, "epochs=4", "batch_size=16", "optimizer=tmsgd,sgd", "trials=3", "seeds=2"]

    assert main([*words, f"runs_dir={tmp_path / 'whole'}"]) == 0
    kills = 0
    for _ in range(60):
        process = Forked("tune", *words, f"runs_dir={tmp_path / 'parts'}")
        before = sum(len(p.read_text().splitlines()) for p in (tmp_path / "parts").glob("*/curves.csv"))
        deadline = time.monotonic() + 120
        while process.returncode is None and time.monotonic() < deadline:
            lines = sum(len(p.read_text().splitlines()) for p in (tmp_path / "parts").glob("*/curves.csv"))
            if lines >= before + 11:  # in the middle of some run, another each time
                break
            time.sleep(0.01)
        if process.returncode is not None:
            break
        process.kill()
        process.wait()
        kills += 1
    assert process.returncode == 0
    assert kills >= 3
    whole, parts = (outcome(tmp_path / name, "tc-tmsgd-sgd-tiny") for name in ("whole", "parts"))
    for name, own in whole["optimizers"].items():
        other = parts["optimizers"][name]
        assert own["choice"] == other["choice"]
        kept = ("number", "values", "value", "run", "status")
        assert [[t[k] for k in kept] for t in own["trials"]] == [[t[k] for k in kept] for t in other["trials"]]
        assert [r["value"] for r in own["confirmation"]["runs"]] == [r["value"] for r in other["confirmation"]["runs"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["study.json", "trials.json", "choice.json", "result.json"])
def test_whatever_happens_to_a_study_s_file_the_same_command_ends_in_words(
    name: str, finished: Path, fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished / ".tune" / "s"
    shutil.copytree(folder, kept := finished / "kept")
    for what, damage in ways(folder / name, 40):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        damage(folder / name)
        code = main(alone(finished))
        told = capsys.readouterr().err
        assert (code in (0, 1), "Traceback" in told) == (True, False), (what, told)
        assert code == 0 or f"{folder}" in told, (what, told)
