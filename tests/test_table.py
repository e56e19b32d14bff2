"""The one table of settings: whole, true to conf/, and what identity and help follow from."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Compose
from omegaconf import OmegaConf

from tmbench.config.identity import run_id
from tmbench.config.machine import gpu_names
from tmbench.config.settle import plain, settled
from tmbench.config.table import (
    BOOKKEEPING,
    KINDS,
    METHOD,
    NUMBERS,
    PROBLEM,
    Key,
    keys,
    kind_of,
    reference,
    settings_help,
    top_keys,
    values_of,
)  # fmt: skip
from tmbench.config.values import check_of
from tmbench.errors import ConfigError

REFERENCE = list(reference())


def test_every_key_of_conf_is_declared_with_what_it_must_be_and_does() -> None:
    """Its default is that, or a null that is explained."""
    for file, key, setting in REFERENCE:
        assert setting.help, f"{file}: {key} needs a comment: what it must be, and what it does"
        assert setting.kind in (NUMBERS, METHOD, PROBLEM, BOOKKEEPING), (file, key)
        assert not setting.only_with or setting.only_with in values_of(file)
        right = check_of(setting.expects)(setting.default) or "${" in str(setting.default)
        assert setting.null if setting.default is None else right, (file, key, setting)


def test_no_key_of_conf_is_left_out() -> None:
    for file in {file for file, _, _ in REFERENCE}:
        prefix = f"{file.partition('/')[0]}." if "/" in file else ""
        declared = {key.removeprefix(prefix).split(".")[0] for of, key, _ in REFERENCE if of == file}
        assert values_of(file).keys() - {"defaults", "hydra"} == declared, file


def test_a_comment_declares_a_key_and_serves_those_without_one() -> None:
    """As documented in table.py."""
    momentum = keys("optimizer", "tmsgdm")["momentum"]  # documented in sgdm.yaml alone
    assert (momentum.default, momentum.expects, momentum.kind) == (0.9, "a number >= 0", METHOD)
    assert momentum.help == keys("optimizer", "sgdm")["momentum"].help == "share of the last step that is kept"
    base = keys("task", "ic")["mup_base"]
    assert (base.expects, base.null, base.only_with) == ("a whole number >= 1", "what width is if left alone", "mup")
    assert keys("task", "od")["mode"].expects == "one of paper_number, paper_text"
    switch = keys("optimizer", "switch")
    assert (switch["first.lr"].default, switch["first._target_"].fixed) == ("${lr}", "")
    assert keys("optimizer", "sgd_to_sgdm")["first._target_"].fixed
    assert "first" not in switch
    assert keys("optimizer", "mine") == {}


def test_kinds_are_the_groups_where_nothing_else_is_declared() -> None:
    expected = {
        "seed": NUMBERS, "lr": METHOD, "optimizer.momentum": METHOD, "optimizer.mine": METHOD, "task.width": PROBLEM,
        "world_size": PROBLEM, "data.digest": PROBLEM, "trainer.num_workers": BOOKKEEPING, "runs_dir": BOOKKEEPING,
        "protocol.name": BOOKKEEPING, "logger.project": BOOKKEEPING, "trainer.precision": PROBLEM,
    }  # fmt: skip
    assert {key: kind_of(key) for key in expected} == expected


def another(setting: Key, value: Any) -> Any:
    """A value that the key may have in place of this one."""
    first = setting.expects.split(", or ")[0]
    if first.startswith("one of "):
        return next(name for name in reversed(first.removeprefix("one of ").split(", ")) if name != value)
    if "between" in first:
        return 0.25 if value != 0.25 else 0.75
    if first.startswith("a whole number"):
        return value + 1 if isinstance(value, int) else 3
    if first.startswith("a number"):
        return (value or 0) + 0.5
    if first == "a list":
        return [*(value or []), 0.123]
    others = {"true or false": not value, "settings": {"x": 1}, "a folder": "other"}
    return others.get(first, "adadelta")


@pytest.mark.parametrize(
    ("optimizer", "task", "more"),
    [("tmsgd", "tc", ["schedule=step"]), ("adam", "ic", ["logger=wandb"]), ("switch", "seg", ["data=full"]),
     ("sgd", "ctr", ["schedule=poly", "task.mup=true"])],
)  # fmt: skip
def test_a_run_is_another_if_and_only_if_what_can_change_its_numbers_changes(
    optimizer: str, task: str, more: list[str], composed: Compose
) -> None:
    words = [f"optimizer={optimizer}", f"task={task}", "trainer=ddp_cpu", "validation=0.5", *more]
    raw = plain(composed(*words))
    files = {f"{group}/{part.get('name', part.get('profile'))}.yaml" for group, part in raw.items() if group in KINDS}
    files |= {"config.yaml", "trainer/auto.yaml", f"logger/{raw['logger']['name']}.yaml"}
    before, seen = settled(raw), 0
    for _, key, setting in (entry for entry in REFERENCE if entry[0] in files):
        *path, last = key.split(".")
        node, now = plain(raw), before
        changed = node
        for part in path:
            node, now = node[part], now[part]
        # No other here, where there may be several processes; test_rows.py and test_replicas.py have the last two.
        never = ("trainer.accelerator", "trainer.strategy", "task.sparse", "replicas")
        if setting.fixed or last not in now or key in never:
            continue
        node[last] = another(setting, now[last])
        is_other = run_id(settled(changed), "") != run_id(before, "")
        is_read = not setting.only_with or bool((node if setting.only_with == last else now)[setting.only_with])
        is_read &= key != "switch_epoch" or "switch_step" in before["optimizer"]
        assert is_other == (setting.kind != BOOKKEEPING and is_read), key
        seen += 1
    assert seen > 35


def test_a_value_that_nobody_may_have_is_told_by_key(composed: Compose) -> None:
    for word, told in (
        ("optimizer.c=x", "optimizer.c: expected a number >= 0, got 'x'"),
        ("optimizer.history=maybe", "optimizer.history: expected one of true, zero, got 'maybe'"),
        ("trainer.devices=0", "devices: trainer=cpu uses one, got 0"),
        ("trainer.accumulate=0", "trainer.accumulate: expected a whole number >= 1, got 0"),
        ("trunk=on", "trunk: expected one of auto, off, got"),
        ("++optimizer.trunk=first", r"optimizer.trunk: expected settings such as {part: first}, got 'first'"),
    ):
        with pytest.raises(ConfigError, match=told):
            settled(plain(composed("task=tc", "optimizer=tmsgd", "trainer=cpu", word)))
    assert settled(plain(composed("task=tc", "trunk=off")))["trunk"] == "off"


def test_interpolations_are_resolved_as_omegaconf_resolves_them(
    composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMBENCH_DATA", "/some where")
    words = ["task=seg", "optimizer=switch", "trainer=cpu", "+optimizer.note=a ${seed} b", "+optimizer.mine=${..seed}"]
    raw = plain(composed(*words, "lr=0.25", "+optimizer.second.eps=${..first.eps}", "+optimizer.list=[1,${lr}]"))
    expected: Any = OmegaConf.to_container(OmegaConf.create(raw), resolve=True)
    cfg = settled(raw)
    assert (cfg["optimizer"], cfg["data_dir"]) == (expected["optimizer"], "/some where")


def test_help_lists_every_key_that_stands_in_no_group() -> None:
    text = settings_help()
    assert all(f"\n  {key} " in f"\n{text}" for key in top_keys())
    assert "learning rate (a number > 0; null: the task's own value under the protocol)" in text
    assert max(map(len, text.splitlines())) <= 120


def driver(*names: bytes, error: int = 0) -> SimpleNamespace:
    """Stands in for cuda.bindings.driver on a machine with GPUs."""
    return SimpleNamespace(
        cuInit=lambda flags: (error,),
        cuDeviceGetCount=lambda: (0, len(names)),
        cuDeviceGet=lambda ordinal: (0, ordinal),
        cuDeviceGetName=lambda size, device: (0, (names[device] + b"\0\0").ljust(size)),  # as cuda-bindings 13.3 does
    )


def no_driver(flags: int) -> tuple[int]:
    raise RuntimeError("no libcuda.so.1")


@pytest.mark.parametrize(
    ("driver", "torch", "names"),
    [(driver(b"NVIDIA A", b"NVIDIA B"), "2.15.0", ["NVIDIA A", "NVIDIA B"]), (driver(b"NVIDIA A"), "2.15.0+cpu", []),
     (driver(), "2.15.0", []), (driver(b"NVIDIA A", error=100), "2.15.0", []),
     (SimpleNamespace(cuInit=no_driver), "2.15.0", []), (None, "2.15.0", [])],
)  # fmt: skip
def test_gpus_are_those_that_cuda_shows(
    driver: SimpleNamespace | None, torch: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = SimpleNamespace(driver=driver) if driver else None
    monkeypatch.setitem(sys.modules, "cuda.bindings", package)
    monkeypatch.setattr("tmbench.config.machine.version", lambda name: torch)
    assert gpu_names.__wrapped__() == names
