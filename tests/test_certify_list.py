"""`tmbench certify list`: what optimizer=any reaches, and what is known of it."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from tmbench.certify import catalogue
from tmbench.certify.__main__ import main
from tmbench.certify.catalogue import Entry, entries, entry_of, licence_of, paper_of
from tmbench.optim.elementwise import stacked_difference
from tmbench.training.optimizers import classes, find

KNOWN = {
    "SGD": (0, False, True), "Adam": (2, False, True), "Adagrad": (1, False, True), "Lion": (1, False, True),
    "Adafactor": (2 / catalogue.SIDE, False, False),  # a row's and a column's second moments in place of a matrix
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_state_closure_and_elements_are_as_published(name: str) -> None:
    entry = entry_of(name, classes()[name])
    state, closure, elementwise = KNOWN[name]
    assert entry.state == pytest.approx(state, abs=2e-3)
    assert (entry.closure, entry.elementwise, entry.problem) == (closure, elementwise, "")
    assert entry.holds > 8


def test_a_step_with_a_closure_counts_what_it_keeps() -> None:
    """LBFGS: a direction, the last gradient, and pairs of changes of weights and gradients."""
    closure, state = catalogue._state_of(partial(torch.optim.LBFGS, max_iter=3, history_size=2))
    assert closure
    assert 4 <= state <= 6.001


def test_what_cannot_be_made_or_takes_no_step_says_why() -> None:
    assert "base_optimizer" in entry_of("SAM", classes()["SAM"]).problem
    assert "sparse gradients" in entry_of("SparseAdam", torch.optim.SparseAdam).problem.replace("dense", "sparse")


@pytest.mark.parametrize("name", ["DAdaptLion", "DAdaptAdan", "Prodigy"])
def test_one_rate_for_all_elements_is_noticed_though_it_grows_late(name: str) -> None:
    """pytorch_optimizer 4.1.0: they estimate it from all tensors, and it stays at 1e-6 for some steps."""
    new = partial(find, method=name, lr=0.01, weight_decay=0.0, options={})
    assert stacked_difference(new) > 1e-6


def test_a_licence_that_forbids_commercial_use_is_named() -> None:
    """pytorch_optimizer 4.1.0: Fromage's file has it in its head, Nero's only in the notes on licences."""
    found = {name: licence_of(name, kind) for name, kind in classes().items()}
    assert {name for name, licence in found.items() if licence} == {"Fromage", "Nero"}
    assert {found["Fromage"], found["Nero"]} == {"CC BY-NC-SA 4.0"}


def test_papers_are_the_published_ones() -> None:
    found = {name: paper_of(name, kind) for name, kind in classes().items()}
    assert found["Adam"].endswith("1412.6980")
    assert found["AdaBelief"].endswith("2010.07468")
    assert found["ApolloDQN"].endswith("2009.13586")  # Apollo in the table, beside another method, APOLLO
    assert found["APOLLO"].endswith("2412.05270")
    assert found["DAdaptSGD"].endswith("2301.07733")  # in the table as D-Adaptation
    assert sum(not address for address in found.values()) < len(found) / 6


def test_an_entry_is_made_once_and_again_for_other_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        catalogue, "entry_of", lambda name, kind: made.append(name) or Entry(name, "torch 1", fails=("lr",))
    )
    for expected in (False, True):
        assert [known for _, known in entries(["Adam", "SGD"], tmp_path)] == [expected] * 2
    assert made == ["Adam", "SGD"]
    (tmp_path / "Adam.json").write_text("{}")  # damaged
    assert [known for _, known in entries(["Adam", "SGD"], tmp_path)] == [False, True]
    monkeypatch.setattr(catalogue, "version", lambda library: "0")
    assert [(entry.fails, known) for entry, known in entries(["SGD"], tmp_path)] == [(("lr",), False)]


def test_the_command_lists_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["list", "SGD", "Fromage"]) == 0
    told = capsys.readouterr().out
    assert "arxiv.org/abs/2002.03432" in told
    assert "Fromage  CC BY-NC-SA 4.0" in told
    assert main(["list", "Fromage", "json=true"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert (entry["name"], entry["library"].split()[0]) == ("Fromage", "pytorch_optimizer")
    assert main(["list", "Fromge"]) == 2
    assert "like Fromage" in capsys.readouterr().err
    assert main(["list", "lr=1"]) == 2
