"""Runs that measure their curvature: nothing of them changes, and a switch can wait until it is stable."""

import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, Run, each_task
from helpers import SHORT, assert_same, curves, weights
from omegaconf import OmegaConf
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from tmbench.config.identity import run_id
from tmbench.config.settle import settle
from tmbench.errors import ConfigError
from tmbench.optim import TMSGD, SwitchOptimizer, stability
from tmbench.result import Result
from tmbench.run import run
from tmbench.sweeps.plan import Job, RunFinder, words_of_arms
from tmbench.training.curvature import epoch_of_stable_switch

LOOK = ["curvature=measure", "curvature.examples=16", "curvature.iterations=6"]


def without_curvature(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if not key.startswith("curvature/")} for row in rows]


@pytest.mark.parametrize("task", each_task("tc"))
def test_measuring_changes_nothing_of_a_run(task: str, composed: Compose, tmp_path: Path) -> None:
    words = [f"task={task}", "optimizer=tmsgd", *SHORT.get(task, []), "epochs=2", "switch_epoch=1", "trunk=off"]
    plain, with_it = (
        run(composed(*words, *more, f"runs_dir={tmp_path / str(len(more))}"))[:2] for more in ([], LOOK)
    )  # fmt: skip
    assert plain[0].run_id == with_it[0].run_id
    assert_same(weights(plain[1]), weights(with_it[1]))
    rows = curves(with_it[1])
    assert without_curvature(rows) == curves(plain[1])
    assert plain[0].curvature is None
    about = with_it[0].curvature
    assert about is not None
    assert about["how"] in ("double backward", "central differences")
    tops = [key for key in rows[0] if key.startswith("curvature/top")]
    assert len(tops) == (2 if task == "ig" else 1)
    for row in rows:
        for key in tops if task not in ("seg", "od") else ():  # by whose schedule the next step has another rate
            player = key.removeprefix("curvature/top")
            used = float(row[f"curvature/used{player}"])
            limit = float(row[f"curvature/limit{player}"])
            assert used == pytest.approx(float(row[key]) * float(row.get("lr", row.get(f"lr{player}"))) / limit)  # type: ignore[arg-type]
    assert rows[0][f"curvature/used_after_switch{tops[0].removeprefix('curvature/top')}"]
    assert not rows[1][f"curvature/used_after_switch{tops[0].removeprefix('curvature/top')}"]


def test_resumed_run_measures_the_same(composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=tmsgd", "epochs=3", "switch_epoch=stable", "curvature.patience=1", *LOOK]
    _, whole, _ = run(composed(*words, f"runs_dir={tmp_path / 'whole'}"))
    cfg = composed(*words, f"runs_dir={tmp_path / 'stopped'}")
    for until in (1, 2):
        assert run(cfg, until=until)[0].status == "interrupted"
    result, stopped, how = run(cfg)
    assert how == "resumed"
    assert curves(stopped) == curves(whole)
    assert_same(weights(stopped), weights(whole))
    assert result.switch == {"requested": "stable", "effective": 1, "step": result.steps // 3}


@pytest.mark.parametrize("optimizer", ["tmsgd", pytest.param("switch", marks=pytest.mark.slow)])
def test_stable_switch_is_the_switch_at_that_epoch(optimizer: str, composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", f"optimizer={optimizer}", "epochs=4"]
    found, folder, _ = run(composed(*words, "switch_epoch=stable", *LOOK, f"runs_dir={tmp_path / 'stable'}"))
    epoch = found.switch["effective"]
    assert epoch == 2  # two measurements below
    assert f"switch_epoch=stable: switched after epoch {epoch}" in " ".join(found.notes)
    fixed, elsewhere, _ = run(composed(*words, f"switch_epoch={epoch}", f"runs_dir={tmp_path / 'fixed'}"))
    assert fixed.switch["step"] == found.switch["step"]
    assert without_curvature(curves(folder)) == curves(elsewhere)
    assert_same(weights(folder), weights(elsewhere))


@pytest.mark.slow
@pytest.mark.parametrize("task", ["tc", "ic"])
def test_two_ranks_measure_what_one_does_and_switch_together(task: str, composed: Compose, tmp_path: Path) -> None:
    words = [f"task={task}", "optimizer=tmsgd", "epochs=3", "lr=0.0005"]
    pair, stable = ["trainer=ddp_cpu", "devices=2"], ["switch_epoch=stable", "curvature.patience=1", *LOOK]
    both, folder, _ = run(composed(*words, *pair, *stable, f"runs_dir={tmp_path / 'both'}"))
    parts = ["trainer.accumulate=2"]  # by whose statistics batch norm goes, as on two ranks
    alone, elsewhere, _ = run(composed(*words, *parts, *stable, f"runs_dir={tmp_path / 'alone'}"))
    epoch = both.switch["effective"]
    assert epoch == alone.switch["effective"] == {"tc": 1, "ic": 2}[task]
    first, first_alone = curves(folder)[0], curves(elsewhere)[0]
    for key in ("curvature/top", "curvature/gradient_norm", "curvature/used_after_switch"):
        assert float(first[key]) == pytest.approx(float(first_alone[key]), rel=1e-3)
    _, fixed, _ = run(composed(*words, *pair, f"switch_epoch={epoch}", f"runs_dir={tmp_path / 'fixed'}"))
    assert_same(weights(fixed), weights(folder))
    assert curves(fixed) == without_curvature(curves(folder))


def test_stable_switch_never_comes_where_the_edge_is_passed(do: Run) -> None:
    words = ["task=tc", "epochs=3", "curvature.share=1e-6"]
    result, folder = do(*words, "optimizer=tmsgd", "switch_epoch=stable", *LOOK)
    assert result.switch == {"requested": "stable", "effective": None, "step": None}
    assert any("never switched" in note for note in result.notes)
    plain, elsewhere = do("task=tc", "epochs=3", "optimizer=sgd", "trunk=off")
    assert_same(weights(folder), weights(elsewhere))
    assert plain.score == result.score


def test_stable_run_shares_what_it_trains_before_its_switch(composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", "epochs=4", f"runs_dir={tmp_path}"]
    found, folder, _ = run(
        composed(*words, "optimizer=tmsgd", "switch_epoch=stable", *LOOK), requests=[(2, 2), (1, 0), (3, 2)]
    )
    assert found.switch["effective"] == 2
    fixed, elsewhere, _ = run(composed(*words, "optimizer=tmsgd", "switch_epoch=2"))
    assert fixed.epochs["from_trunk"] == 2
    assert_same(weights(elsewhere), weights(folder))
    assert curves(elsewhere) == without_curvature(curves(folder))  # what the other run has measured is not this run's
    assert not any("curvature" in key for key in [*fixed.metrics["last"], *fixed.metrics["best"]])


def test_rule_of_a_stable_switch() -> None:
    def rows(*uses: float | None) -> list[dict[str, float]]:
        key = "curvature/used_after_switch"
        return [{"epoch": i + 1} | ({} if use is None else {key: use}) for i, use in enumerate(uses)]

    assert epoch_of_stable_switch(rows(0.9, 0.7, 0.9, 0.7, 0.79, 2.0), share=0.8, patience=2) == 5
    assert epoch_of_stable_switch(rows(0.9, 0.7, 0.9), share=0.8, patience=2) is None
    assert epoch_of_stable_switch(rows(0.7, None, 0.7), share=0.8, patience=2) == 3  # not measured after each epoch
    assert epoch_of_stable_switch(rows(0.8, 0.8), share=0.8, patience=1) is None
    both = [{"epoch": 1, "curvature/used_after_switch_a": 0.1, "curvature/used_after_switch_b": 0.9}]
    assert epoch_of_stable_switch(both, share=0.8, patience=1) is None  # of several players, all


def test_warns_before_a_switch_beyond_the_limit(do: Run, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=tc", "epochs=3", "switch_epoch=2", "optimizer=tmsgd", *LOOK, "curvature.examples=64"]
    result, folder = do(*words, "lr=2")
    uses = float(curves(folder)[1]["curvature/used_after_switch"])
    assert uses > 1
    warning = f"switching now (after epoch 2) uses {uses:.2g} of the stability limit of optimizer=tmsgd"
    assert warning in capsys.readouterr().err
    assert any(warning in note for note in result.notes)
    calm, _ = do(*words, "lr=0.002")
    assert "switching now" not in capsys.readouterr().err + " ".join(calm.notes)


def test_identity_and_a_completed_run_without(composed: Compose, tmp_path: Path, capsys: Any) -> None:
    words = ["task=tc", "epochs=2", "optimizer=tmsgd", f"runs_dir={tmp_path}"]

    def name(*more: str) -> str:
        return run_id(settle(composed(*words, *more)), "digest")

    assert name() == name("curvature=measure") == name("curvature=measure", "curvature.every=2")
    assert name("switch_epoch=stable") == name("switch_epoch=stable", "curvature=measure")
    different = {
        name(),
        *(name("switch_epoch=stable", "curvature=measure", *more) for more in ([], ["curvature.share=0.5"])),
    }
    assert len(different) == 3
    run(composed(*words))
    capsys.readouterr()
    result, folder, how = run(composed(*words, *LOOK))
    assert (how, result.curvature) == ("shown", None)
    assert f"curvature: {folder.name} was trained without it; force=true repeats it with" in capsys.readouterr().err
    again, _, _ = run(composed(*words, *LOOK, "force=true"))
    assert again.curvature is not None


def test_methods_without_a_limit(do: Run) -> None:
    with pytest.raises(ConfigError, match="optimizer=lbfgs takes several looks at the loss"):
        do("task=tc", "optimizer=lbfgs", "epochs=1", "curvature=measure")
    with pytest.raises(ConfigError, match=r"the stability limit of what optimizer=switch is after its switch"):
        do("task=tc", "optimizer=switch", "optimizer.second._target_=torch.optim.Adam", "~optimizer.second.momentum",
           "epochs=2", "switch_epoch=stable")  # fmt: skip
    result, folder = do("task=tc", "optimizer=lion", "epochs=1", *LOOK)
    assert "curvature/used is not defined for optimizer=lion" in result.notes
    assert "curvature/top" in curves(folder)[0]


class TestHalfTheRateFromTheSwitchOn:
    def test_is_the_formula_with_that_rate(self) -> None:
        paths = []
        for settings in ({"lr": 0.1, "lr_factor": 0.5}, {"lr": 0.05}):
            p = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
            optimizer = TMSGD([p], switch_step=0, **settings)  # type: ignore[arg-type]
            for _ in range(20):
                p.grad = p.detach() * torch.tensor([1.0, 3.0])
                optimizer.step()
            paths.append(p.detach())
        torch.testing.assert_close(*paths, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_has_twice_the_limit(self, momentum: float) -> None:
        half = stability(TMSGD, momentum=momentum, lr_factor=0.5).limit
        assert half == pytest.approx(2 * stability(TMSGD, momentum=momentum).limit, rel=1e-6)

    def test_arms_of_a_study(self, composed: Compose) -> None:
        def arms(*words: str) -> dict[str, list[str]]:
            job = Job(0, ["task=tc", *words], OmegaConf.to_container(composed("task=tc", "study=switch", *words)))  # type: ignore[arg-type]
            RunFinder(download=False).find(job)
            return words_of_arms(job)

        assert "optimizer.lr_factor=0.5" in arms("optimizer=tmsgdm")["half lr, TM"]
        assert "optimizer.handover=true" in arms("optimizer=switch")["handover"]
        assert "handover" not in arms("optimizer=tmsgd")
        assert arms("optimizer=tmsgd", "switch_epoch=stable") == {}  # each arm would switch at an epoch of its own


def minimum(optimizer_of: Any, steps: int, schedule: Any = None) -> tuple[list[torch.Tensor], Any]:
    """The path on a quadratic."""
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    optimizer = optimizer_of([p])
    scheduler = LambdaLR(optimizer, schedule) if schedule else None
    path = [p.detach().clone()]
    for _ in range(steps):
        p.grad = p.detach() * torch.tensor([1.0, 3.0, 0.1], dtype=torch.float64)
        optimizer.step()
        if scheduler:
            scheduler.step()
        path.append(p.detach().clone())
    return path, optimizer


class TestHandover:
    @pytest.mark.parametrize("second", [partial(SGD, lr=0.7, momentum=0.9), partial(TMSGD, lr=0.3, switch_step=0)])
    @pytest.mark.parametrize("schedule", [None, lambda k: 0.9**k])
    def test_first_step_is_as_long_as_the_mean_of_the_first(self, second: Any, schedule: Any) -> None:
        new = partial(SwitchOptimizer, first=partial(Adam, lr=0.01), second=second, switch_step=8, handover=4)
        path, optimizer = minimum(new, 9, schedule)
        lengths = [float((b - a).norm()) for a, b in pairwise(path)]
        assert lengths[8] == pytest.approx(math.fsum(lengths[4:8]) / 4, rel=1e-9)
        told = optimizer.handed_over
        assert told["mean_step"] == pytest.approx(lengths[8], rel=1e-9)
        rate = second.keywords["lr"] * told["factor"] * (schedule(9) if schedule else 1)
        assert optimizer.lrs == pytest.approx([rate], rel=1e-12)  # the following steps have it, too

    def test_keeps_its_state_over_a_checkpoint(self) -> None:
        new = partial(SwitchOptimizer, first=partial(Adam, lr=0.01), second=partial(SGD, lr=0.5, momentum=0.9),
                      switch_step=8, handover=4)  # fmt: skip
        whole, _ = minimum(new, 14)
        for at in (6, 8, 11):
            path, optimizer = minimum(new, at)
            p = nn.Parameter(path[-1].clone())
            resumed = new([p])
            resumed.load_state_dict(optimizer.state_dict())
            for _ in range(14 - at):
                p.grad = p.detach() * torch.tensor([1.0, 3.0, 0.1], dtype=torch.float64)
                resumed.step()
            assert torch.equal(p.detach(), whole[-1])

    def test_refuses(self) -> None:
        p = nn.Parameter(torch.ones(2))
        with pytest.raises(ValueError, match="handover: expected a whole number >= 1 of steps"):
            SwitchOptimizer([p], Adam, SGD, 3, handover=0)
        with pytest.raises(ValueError, match="expected handover or criterion"):
            SwitchOptimizer([p], Adam, partial(SGD, lr=0.1), criterion="swats", handover=2)

    def test_of_a_run_leaves_the_trunk_an_epoch_earlier_and_says_what_it_did(
        self, composed: Compose, tmp_path: Path
    ) -> None:
        words = ["task=tc", "epochs=4", "switch_epoch=3", "optimizer=switch"]
        results: list[Result] = []
        for runs, more in (
            ("shared", []),
            ("shared", ["optimizer.handover=true"]),
            ("own", ["optimizer.handover=true"]),
        ):
            result, _, _ = run(composed(*words, *more, f"runs_dir={tmp_path / runs}"), requests=[(2, 0)])
            results.append(result)
        plain, shared, own = results
        assert (shared.epochs["from_trunk"], own.epochs["from_trunk"]) == (2, 0)
        assert shared.metrics["last"] == own.metrics["last"] != plain.metrics["last"]
        assert [note for note in shared.notes if note.startswith("handover: the first method's mean step was")]


def test_switch_at_moves_a_switch_that_has_not_come() -> None:
    new = partial(TMSGD, lr=0.1)
    fixed, _ = minimum(partial(new, switch_step=4), 10)
    p = nn.Parameter(fixed[0].clone())
    optimizer = new([p], switch_step=None)
    for step in range(10):
        if step in (0, 2):  # at the start of epochs of two steps, after each of which it may switch
            optimizer.switch_at(step + 2)
        p.grad = p.detach() * torch.tensor([1.0, 3.0, 0.1], dtype=torch.float64)
        optimizer.step()
        if step == 1:
            optimizer.switch_at(None)
            assert not optimizer.state[p]
    assert torch.equal(p.detach(), fixed[-1])
    with pytest.raises(ValueError, match="the formula is at work"):
        optimizer.switch_at(20)
