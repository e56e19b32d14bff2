"""conf/ composes, says what the paper says, and settles into complete configurations."""

from itertools import product

import pytest
from conftest import Compose, choices
from hydra.utils import get_class
from omegaconf import OmegaConf

from tmbench.config.identity import effective_switch
from tmbench.config.settle import settle
from tmbench.config.table import GROUPS, conf_dir
from tmbench.data import Dataset
from tmbench.errors import ConfigError
from tmbench.task import Task

# The paper's Table 2: epochs, lr, batch size, switch epoch.
PRINTED = {"tc": (120, 1e-2, 5, 100), "seg": (30, 1e-4, 4, 200), "ic": (10, 0.1, 256, 75), "ig": (120, 2e-3, 64, 50),
           "od": (210, 4e-3, 32, 10), "ctr": (20, 1e-3, 256, 15)}  # fmt: skip
RECONCILED = PRINTED | {"seg": (30, 1e-4, 4, 10), "ic": (100, 0.1, 256, 75), "od": (210, 4e-3, 32, 200)}


def rates(settings: object) -> set[float]:
    """The values of `lr` at any depth."""
    if not isinstance(settings, dict):
        return set()
    return {value for key, value in settings.items() if key == "lr"}.union(*map(rates, settings.values()))


def test_every_file_names_itself() -> None:
    for group in GROUPS:
        for choice in choices(group):
            content = OmegaConf.load(conf_dir() / group / f"{choice}.yaml")
            assert content.get("name", content.get("profile")) == choice


@pytest.mark.parametrize("optimizer", choices("optimizer"))
def test_every_optimizer_composes_and_settles_completely(optimizer: str, composed: Compose) -> None:
    """Each with one of the tasks, each of which has its turn."""
    task = choices("task")[choices("optimizer").index(optimizer) % len(choices("task"))]
    raw = composed(f"task={task}", f"optimizer={optimizer}", "trainer=cpu")
    cfg = settle(raw)
    for key in ("seed", "epochs", "batch_size", "lr", "switch_epoch"):
        assert cfg[key] is not None
    assert all(value is not None for value in cfg.task.values())
    assert rates(OmegaConf.to_container(cfg.optimizer)) <= {1.0 if optimizer in ("learned", "prodigy") else cfg.lr}
    assert settle(cfg) == cfg
    raw.lr = cfg.lr
    assert OmegaConf.to_container(raw.optimizer, resolve=True) == OmegaConf.to_container(cfg.optimizer)


@pytest.mark.parametrize(("protocol", "table"), [("as_printed", PRINTED), ("reconciled", RECONCILED)])
def test_full_runs_have_the_papers_settings(protocol: str, table: dict, composed: Compose) -> None:
    assert set(table) <= set(choices("task"))
    for task, numbers in table.items():
        cfg = settle(OmegaConf.merge(composed(f"task={task}", "data=full"), {"protocol": {"name": protocol}}))
        assert (cfg.epochs, cfg.lr, cfg.batch_size, cfg.switch_epoch) == numbers


def test_what_depends_on_the_model_is_the_models_own_under_every_protocol_and_profile(composed: Compose) -> None:
    """Table 2's row for detection is RFBNet's; Fast R-CNN has its source's, the switch at the same share of the run."""
    expected = {"reconciled": (16, 1e-3, 2, 15), "as_printed": (16, 1e-3, 2, 1)}
    for protocol, numbers in expected.items():
        cfg = settle(composed("task=od", "task.model=fast_rcnn", "data=full", f"protocol={protocol}", "trainer=cpu"))
        assert (cfg.epochs, cfg.lr, cfg.batch_size, cfg.switch_epoch) == numbers
        assert cfg.switch_epoch == round(PRINTED["od"][3] / 210 * 16) or protocol == "reconciled"
        assert (cfg.task.size, cfg.task.eval_batch_size, cfg.task.mode) == (600, 1, "paper_text")
        assert (list(cfg.schedule.milestones), cfg.schedule.warmup_epochs) == ([0.75], 0.0)
        assert "models" not in cfg.task
    cfg = settle(composed("task=od", "data=full", "trainer=cpu"))
    assert (cfg.task.size, cfg.task.eval_batch_size, cfg.task.mode) == (300, 16, "paper_number")
    assert [round(210 * share) for share in cfg.schedule.milestones] == [150, 200]
    assert cfg.lr * cfg.schedule.warmup_from == pytest.approx(1e-6)
    own = ["epochs=9", "lr=0.5", "batch_size=3", "switch_epoch=2", "task.size=400", "schedule.milestones=[0.5]"]
    cfg = settle(composed("task=od", "task.model=fast_rcnn", *own, "trainer=cpu"))
    assert (cfg.epochs, cfg.lr, cfg.batch_size, cfg.switch_epoch, cfg.task.size) == (9, 0.5, 3, 2, 400)
    assert list(cfg.schedule.milestones) == [0.5]
    with pytest.raises(ConfigError, match=r"task.model: expected one of rfbnet, fast_rcnn, got 'yolo'"):
        settle(composed("task=od", "task.model=yolo", "trainer=cpu"))


def test_what_reads_the_data_is_chosen_by_the_key_that_the_task_names(composed: Compose) -> None:
    for words, reader in (
        (["data=full"], "VOC0712"), (["data=full", "task.mode=paper_text"], "VOCDetection"),
        ([], "VOCDetection"), (["task.mode=paper_number"], "VOC0712"),
        (["data=full", "task.model=fast_rcnn"], "VOCDetection"),
    ):  # fmt: skip
        cfg = settle(composed("task=od", "trainer=cpu", *words))
        assert cfg.task.data == f"tmbench.tasks.od.boxes.{reader}"
        assert "data_by" not in cfg.task
    with pytest.raises(ConfigError, match=r"task.mode: expected one of paper_number, paper_text, got 'both'"):
        settle(composed("task=od", "task.mode=both", "trainer=cpu"))


def test_source_schedule_is_constant_for_a_task_without_one(composed: Compose) -> None:
    source = OmegaConf.load(conf_dir() / "schedule" / "source.yaml")
    for task in choices("task"):
        raw = composed(f"task={task}", "data=full")
        raw.schedule = source
        assert list(settle(raw).schedule.milestones) == ([] if task != "od" else [0.714286, 0.952381])


def test_tiny_run_really_switches(composed: Compose) -> None:
    for task, protocol, epochs in product(choices("task"), choices("protocol"), (None, 2, 7)):
        raw = composed(f"task={task}")
        cfg = settle(OmegaConf.merge(raw, {"epochs": epochs, "protocol": {"name": protocol}}))
        assert 1 <= cfg.switch_epoch <= cfg.epochs - 1, (task, protocol, epochs)


def test_tiny_switch_keeps_its_share_of_the_epochs(composed: Compose) -> None:
    assert settle(composed("task=tc", "epochs=12")).switch_epoch == 10  # 100 of 120
    assert settle(composed("task=seg", "epochs=30")).switch_epoch == 10  # 10 of 30


def test_command_line_wins_over_protocol_profile_and_task(composed: Compose) -> None:
    own = ["epochs=3", "lr=0.5", "batch_size=7", "switch_epoch=2", "task.short_side=48", "schedule=constant"]
    cfg = settle(composed("task=seg", *own))
    assert (cfg.epochs, cfg.lr, cfg.batch_size, cfg.switch_epoch) == (3, 0.5, 7, 2)
    assert (cfg.task.short_side, cfg.schedule.name, cfg.optimizer.lr) == (48, "constant", 0.5)


def test_switch_is_effective_only_inside_a_run_that_reads_it(composed: Compose) -> None:
    cases = ("sgd", 1, None), ("tmsgd", 1, 1), ("tmsgd", 0, 0), ("tmsgd", "never", None), ("tmsgd", 4, None)
    for optimizer, switch, expected in cases:
        cfg = settle(composed("task=tc", f"optimizer={optimizer}", f"switch_epoch={switch}", "epochs=4"))
        assert effective_switch(cfg) == expected


def test_switch_epoch_is_a_number_or_never(composed: Compose) -> None:
    for switch in ("-1", "1.5", "always", "true"):
        with pytest.raises(ConfigError, match="switch_epoch: expected a whole number >= 0, or never, or stable, got"):
            settle(composed("task=tc", f"switch_epoch={switch}"))


def test_targets_of_a_task_exist() -> None:
    for task in choices("task"):
        settings = OmegaConf.load(conf_dir() / "task" / f"{task}.yaml")
        assert issubclass(get_class(settings._target_), Task)
        data = [settings.data] if isinstance(settings.data, str) else settings.data.values()
        assert all(issubclass(get_class(cls), Dataset) for cls in data)


@pytest.mark.parametrize("trainer", ["gpu", "ddp"])
def test_gpu_trainers_say_when_there_is_none(trainer: str, composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tmbench.config.machine.count_gpus", lambda: 0)
    with pytest.raises(ConfigError, match=f"trainer={trainer}: no NVIDIA GPU is visible here"):
        settle(composed("task=tc", f"trainer={trainer}"))
    monkeypatch.setattr("tmbench.config.machine.count_gpus", lambda: 4)
    assert settle(composed("task=tc", f"trainer={trainer}")).trainer.devices == {"gpu": 1, "ddp": 4}[trainer]
    with pytest.raises(ConfigError, match="devices: expected at most 4, the GPUs visible here, got 8"):
        settle(composed("task=tc", "trainer=ddp", "devices=8"))
    assert settle(composed("task=tc", "trainer=auto")).trainer.accelerator == "cuda"
