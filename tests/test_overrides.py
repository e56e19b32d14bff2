"""The words of a run are kept, and a change of a saved run is what the main command line makes of both."""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Compose, Run
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tmbench.__main__ import train
from tmbench.config.compose import composed as composed_of
from tmbench.config.identity import SCHEMA, run_id
from tmbench.config.overrides import again, check_words, keep
from tmbench.config.settle import settle, settled
from tmbench.config.table import GROUPS, choices, conf_dir
from tmbench.config.trust import check_classes
from tmbench.data import __main__ as data_command
from tmbench.errors import ConfigError
from tmbench.files import read_sealed_text, sealed_text
from tmbench.run import main, run
from tmbench.sweeps import sweep
from tmbench.sweeps.job import JobOrder
from tmbench.sweeps.plan import Job, JobComposer, RunFinder, words_of_arms

COMPOSER = JobComposer([], [*GROUPS, "launcher"])
SHORT = ["task=tc", "epochs=1", "batch_size=80"]


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """rerun(file, change, ...) -> the exit status of tmbench run with these words."""

    def compose(words: list[str]) -> Any:  # as Hydra does, but once
        return (composed_of if re.search("searchpath|,", "".join(words)) else COMPOSER)(words)

    monkeypatch.setattr("tmbench.config.overrides.composed", compose)
    return lambda *words: main([*map(str, words)])


@pytest.fixture
def refused(rerun: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(file, change, ...) -> what a person is told, where tmbench run does not run."""

    def refused(*words: object) -> str:
        assert rerun(*words) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error

    return refused


@pytest.fixture
def requested(rerun: Any) -> Callable[..., DictConfig]:
    """requested(file, change, ...) -> the configuration of the run that tmbench run begins."""
    return lambda file, *changes: settle(again(Path(file), list(changes))[0])


@pytest.fixture
def saved(composed: Compose, tmp_path: Path) -> Callable[..., Path]:
    """saved(word, ...) -> the config.yaml of a run of these words, in its folder."""

    def saved(*words: str, runs_dir: str = str(tmp_path)) -> Path:
        cfg = settle(composed(*words, f"runs_dir={runs_dir}"))
        folder = Path(runs_dir, run_id(cfg, ""))
        folder.mkdir(exist_ok=True, parents=True)
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        (folder / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
        return folder / "config.yaml"

    return saved


def arm(composed: Compose, name: str, *words: str) -> list[str]:
    """The words of a study's arm."""
    job = Job(0, list(words), OmegaConf.to_container(composed(*words, "study=switch")))  # type: ignore[arg-type]
    RunFinder(download=False).find(job)
    return words_of_arms(job)[name]


CHANGES = [
    "lr=0.5", "optimizer=adam", "task=seg", "~optimizer.weight_decay", "optimizer.momentum=0.25",
    "task.weight_decay=0.1", "data=full", "protocol=as_printed", "+optimizer.maximize=true", "trainer=ddp_cpu",
]  # fmt: skip
WORDS: dict[str, Callable[[Compose], list[str]]] = {
    "tc": lambda composed: ["task=tc", "optimizer=tmsgd", "switch_epoch=2", "trainer=cpu"],
    "arm": lambda composed: arm(composed, "half lr", "task=tc", "optimizer=tmsgdm", "epochs=4", "switch_epoch=2"),
    "trial": lambda composed: ["task=tc", "optimizer=adam", "validation=0.2", "optimizer.betas=[0.9, 0.99]", "lr=3e-3"],
    "ic": lambda composed: ["task=ic", "task.dataset=cifar100", "lr=0.01", "optimizer=sgdm", "+optimizer.dampening=0"],
    "seg": lambda composed: ["task=seg", "optimizer=nag", "data=full", "schedule=constant", "trainer=cpu"],
}


@pytest.mark.parametrize("number", range(len(WORDS)), ids=list(WORDS))
def test_a_change_asks_for_the_run_of_the_main_command_line_with_that_word_added(
    number: int, composed: Compose, saved: Any, requested: Any, refused: Any
) -> None:
    """Each of these with two of the changes, one that all that depends on must follow and one that may not be had."""
    words = list(WORDS.values())[number](composed)
    file = saved(*words)
    for change in islice(CHANGES, number, None, len(WORDS)):
        try:
            expected = settle(composed(*words, change))
        except (HydraException, ConfigError):
            refused(file, change)
            continue
        changed = requested(file, change)
        assert run_id(changed, "") == run_id(expected, ""), change
        assert changed.lr == expected.lr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["epoch=2"], "epoch: there is no such setting; did you mean epochs?"),
        (["optimizer.momentm=0.9"], "optimizer.momentm: there is no such setting; did you mean momentum?"),
        (["optimizer=adm"], "optimizer=adm: there is no such choice; did you mean adam"),
        (["optimizer=3"], "optimizer: expected the name of a file"),
        (["optimizer=adam"], r"(?s)optimizer.momentum: there is no such setting.*overrides.yaml asks for: task=tc .*"),
        (["lr=abc"], "lr: expected a number > 0, got 'abc'"),
        (["lr=0.1,0.2"], "several values make a sweep"),
        (["lr"], "lr: expected key=value"),
        (["study=switch"], "study: this works for a sweep only"),
        (["~seed"], "seed: expected a setting of this name, got none"),
        (["data.profile=full"], "data.profile: .* say data=full"),
        (["+optimizer.name=adam"], "optimizer.name: .* say optimizer=adam"),
    ],
)
def test_a_change_that_cannot_be_is_told_in_words(changes: list[str], told: str, saved: Any, refused: Any) -> None:
    assert re.search(told, refused(saved("task=tc", "optimizer=tmsgd", "optimizer.momentum=0.9"), *changes))


def test_a_file_that_is_no_runs_configuration_is_told(refused: Any, tmp_path: Path) -> None:
    for content in ("", "- a", "a: [", "task: tc", "\0", "{task: , optimizer: name}"):
        (tmp_path / "config.yaml").write_text(content)
        assert "config.yaml" in refused(tmp_path / "config.yaml")
        assert "config.yaml" in refused(tmp_path)
    assert "none.yaml" in refused(tmp_path / "none.yaml")


def test_a_configuration_with_a_part_missing_is_told(saved: Any, refused: Any) -> None:
    file = saved("task=tc")
    whole = yaml.safe_load(file.read_text())
    for key in ("seed", "optimizer", "runs_dir", "task.name", "optimizer.name", "trainer.devices", "data.profile"):
        group, _, name = key.partition(".")
        part = {k: v for k, v in whole.items() if k != group} | ({group: {}} if name else {})
        file.write_text(yaml.safe_dump(part))
        assert "expected a run's config.yaml" in refused(file)


def test_a_saved_configuration_names_no_class_that_nobody_trusts(saved: Any, refused: Any, tmp_path: Path) -> None:
    """What it names is imported and called: a folder that somebody sends could run anything."""
    path, made = saved("task=tc", "optimizer=tmsgd"), tmp_path / "made"
    content = yaml.safe_load(read_sealed_text(path))
    for where, name in ((("optimizer", "_target_"), "os.mkdir"), (("task", "data"), "torch.os.mkdir"),
                        (("schedule", "deep"), [{"_target_": "tmbench.files.remove"}])):  # fmt: skip
        changed = json.loads(json.dumps(content))
        changed[where[0]] |= {where[1]: name, "path": str(made)}
        path.write_text(sealed_text(yaml.safe_dump(changed)))
        last = name if isinstance(name, str) else "tmbench.files.remove"
        assert f"names {last}, and what a configuration names is imported and called" in refused(path)
        assert f"add trust={last.rpartition('.')[0]}" in refused(path, "trust=some.other")
        check_classes(changed, path, f"a.b,{last.rpartition('.')[0]}")
    assert not made.exists()


def test_all_that_our_files_name_is_trusted_and_so_are_optimizers_of_torch() -> None:
    for task, optimizer in zip(cycle(choices("task")), choices("optimizer"), strict=False):
        check_classes(settled(COMPOSER([f"task={task}", f"optimizer={optimizer}"])), Path("config.yaml"), None)
    other = settled(COMPOSER(["task=tc", "optimizer=any", "optimizer._target_=torch.optim.Rprop"]))
    check_classes(other, Path("config.yaml"), None)


def test_help_is_no_error(rerun: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert rerun("--help") == 0
    assert "usage: tmbench run RUN" in capsys.readouterr().out
    assert rerun() == 2


def test_a_run_whose_words_are_not_known_can_be_asked_for_again_but_not_changed(
    saved: Any, refused: Any, requested: Any
) -> None:
    file = saved("task=tc", "optimizer=sgd")
    file.with_name("overrides.yaml").unlink()
    assert requested(file) == settle(OmegaConf.load(file))  # type: ignore[arg-type]
    assert requested(file, "force=true").force is True
    assert requested(file, "runs_dir=/else where").runs_dir == "/else where"
    for command, advice in (
        ("python -m tmbench.run RUN", "python -m tmbench task=tc optimizer=sgd ... lr=0.5 data=full"),
        ("python -m tmbench task=tc epochs=1", "python -m tmbench task=tc epochs=1 lr=0.5 data=full"),
    ):
        file.with_name("result.json").write_text(json.dumps({"command": command, "schema_version": SCHEMA}))
        told = refused(file, "lr=0.5", "data=full")
        assert "nothing in it can be changed, and no overrides.yaml beside it has the words" in told
        assert advice in told


def test_what_another_version_saved_is_composed_anew(saved: Any, refused: Any, requested: Any) -> None:
    """Where classes have moved since, or settings came; without the words for it, the command to type is told."""
    for damage in ("task._target_", "task.data", "schema"):
        file = saved("task=tc", "optimizer=sgd", "epochs=3")
        expected = requested(file)
        cfg = yaml.safe_load(file.read_text())
        del cfg["optimizer"]["nesterov"], cfg["validation"]  # as before there were these
        if damage == "schema":
            old = {"schema_version": 1, "command": "python -m tmbench X"}
            file.with_name("result.json").write_text(json.dumps(old))
        else:
            cfg["task"][damage.partition(".")[2]] = "tmbench.old.place.TC"
        file.write_text(yaml.safe_dump(cfg))
        assert requested(file) == expected
        assert requested(file, "lr=0.5").lr == 0.5
        file.with_name("overrides.yaml").unlink()
        told = refused(file)
        assert "saved by another version" in told
        assert "give the whole command: python -m tmbench " in told


def test_a_configuration_changed_by_hand_is_refused(saved: Any, refused: Any) -> None:
    """Its lr alone would change nothing, and name a run that was not."""
    file = saved(*SHORT)
    keep(file.parent, SHORT)
    sealed = sealed_text(file.read_text())
    changed = re.sub(r"(?m)^lr: .*", "lr: 0.7", sealed)
    assert changed != sealed
    for content in (changed, changed.partition("\n")[2]):
        file.write_text(content)
        for words in ([], ["seed=5"]):
            told = refused(file, *words)
            assert "changed by hand" in told
            assert "python -m tmbench.run" in told


def test_overrides_that_are_no_list_of_words_are_told(saved: Any, refused: Any) -> None:
    file = saved(*SHORT)
    overrides = file.with_name("overrides.yaml")
    kept = overrides.read_text()
    for content, told in (
        ("task: tc", "content: input should be a valid array"), ("- [lr=1]", "0: input should be a valid string"),
        ("- a: [", "damaged: not what this program writes"), ("", "damaged: it is empty"),
        (sealed_text(kept).replace("epochs=", "epochs=1"), "damaged, or changed by hand"),
    ):  # fmt: skip
        assert content != kept
        overrides.write_text(content)
        assert f"overrides.yaml: {told}" in refused(file, "lr=0.5")


def test_a_change_that_would_change_more_than_itself_is_refused_by_name(
    saved: Any, refused: Any, requested: Any
) -> None:
    """As where a default has another value by now, or the words were edited."""
    file = saved("task=tc", "optimizer=sgd", "lr=0.1", "task.width=20", "epochs=2")
    overrides = file.with_name("overrides.yaml")
    overrides.write_text(overrides.read_text().replace("width=20", "width=30"))
    told = refused(file, "seed=1")
    assert "more would change than seed=1" in told
    assert "task.width: was 20, would be 30" in told
    assert requested(file, "seed=1", "task.width=20").task.width == 20
    assert requested(file, "seed=1", "task.width=40").task.width == 40
    assert requested(file).task.width == 20


def test_a_run_stays_where_its_folder_is_whoever_calls_from_wherever(
    saved: Any, requested: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    file = saved("task=tc", "data_dir=./data", runs_dir="./runs")
    for changes in ([], ["lr=0.5"]):
        here = requested(file, *changes)
        assert (here.runs_dir, here.data_dir) == ("./runs", "./data")
    monkeypatch.chdir(tmp_path)
    for changes in ([], ["lr=0.5"]):
        there = requested(home / file, *changes)
        assert (there.runs_dir, there.data_dir) == (str(home / "runs"), str(home / "data"))
        assert requested(home / file, *changes, "runs_dir=other").runs_dir == "other"
    sent = shutil.copy(home / file, tmp_path / "sent.yaml")  # alone, so nobody knows where it was
    assert requested(sent).runs_dir == "./runs"


def optimizer_of_ones_own(folder: Path) -> None:
    """Writes optimizer/mine.yaml there."""
    (folder / "optimizer").mkdir(parents=True)
    text = (conf_dir() / "optimizer" / "sgd.yaml").read_text()
    (folder / "optimizer" / "mine.yaml").write_text(text.replace("sgd", "mine"))


def test_a_persons_own_files_serve_a_change_too_and_are_missed_by_name(
    requested: Any, refused: Any, tmp_path: Path
) -> None:
    own = tmp_path / "a, b"
    optimizer_of_ones_own(own)
    words = [f'hydra.searchpath=["file://{own}"]', "task=tc", "optimizer=mine"]
    cfg = settle(OmegaConf.create(composed_of(words)))
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(words))
    changed = requested(tmp_path / "config.yaml", "lr=0.5")
    assert (changed.optimizer.name, changed.optimizer.lr) == ("mine", 0.5)
    own.rename(tmp_path / "moved")
    told = refused(tmp_path / "config.yaml", "lr=0.5")
    assert "a, b: no such folder, but YAML files are expected in it" in told
    moved = f"hydra.searchpath=[file://{tmp_path / 'moved'}]"
    assert requested(tmp_path / "config.yaml", moved, "lr=0.5") == changed


LIES = {
    "data.profile=full": "say data=full", "++data.profile=full": "say data=full", "task.name=ic": "say task=ic",
    "optimizer.name=adam": "say optimizer=adam", "optimizer={name: adam}": "choose another file",
    "optimizer._target_=torch.optim.Adam": "choose another file", "~optimizer.switch_step": "say switch_epoch",
    "optimizer.first._target_=torch.optim.Adam": "choose another file", "optimizer.switch_step=3": "say switch_epoch",
    "optimizer.trunk.differences=0": "choose another file", "trainer.name=gpu": "say trainer=gpu",
    "protocol.name=as_printed": "say protocol=as_printed", "schedule.name=cosine": "say schedule=cosine",
    "+schedule._target_=tmbench.training.schedule.cosine": "choose another file",
    "launcher.name=ray": "say launcher=ray",
    "task.data=tmbench.tasks.ic.cifar.CIFAR100": "choose another file", "study.name=switch": "say study=switch",
    "logger.name=wandb": "say logger=wandb",
}  # fmt: skip


@pytest.mark.parametrize("word", LIES)
def test_a_word_that_would_let_a_run_go_by_another_name_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(LIES[word])):
        check_words(["task=tc", "optimizer=sgd_to_sgdm", word])


def test_such_a_word_is_refused_by_runs_and_sweeps(composed: Compose) -> None:
    words = ["task=tc", "optimizer.name=adam"]
    with pytest.raises(ConfigError, match="say optimizer=adam"):
        run(composed(*words), words=words)
    job = Job(0, words, OmegaConf.to_container(composed(*words)))  # type: ignore[arg-type]
    RunFinder(download=False).find(job)
    assert job.state == "wrong"
    assert "say optimizer=adam" in job.error


def test_files_that_are_there_to_be_filled_in_and_consistent_names_are_not_refused() -> None:
    for words in (
        ["optimizer=any", "optimizer.name=Adadelta"], ["optimizer=tmsgd", "~optimizer.trunk"],
        ["optimizer=switch", "optimizer.first._target_=torch.optim.RMSprop", "~optimizer.first.betas"],
        ["data=tiny", "data.profile=tiny"], ["optimizer=adam", "+optimizer.amsgrad=true"],
        ["optimizer=any", "optimizer.options={name: x}"],
    ):  # fmt: skip
        check_words(words)
    with pytest.raises(ConfigError, match=r"optimizer\.method: this is set by the file that"):
        check_words(["optimizer=any", "optimizer.method=SGD"])


def test_a_profile_without_the_rest_of_its_file_is_refused_in_python_too(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"data\.profile: full needs data.download, too; say data=full"):
        settle(composed("task=tc", "data.profile=full"))


def test_a_changed_run_is_trained_kept_and_advises_what_works(
    composed: Compose, rerun: Any, requested: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    words = [*SHORT, f"runs_dir={runs}", "force=true"]
    _, folder, _ = run(composed(*words), words=words)
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == words[:-1]  # force is for once
    assert rerun(folder / "config.yaml", "task.weight_decay=0.1") == 0
    printed = capsys.readouterr().out
    (advice,) = re.findall(r"^real data +python -m tmbench.run (.*)$", printed, re.MULTILINE)
    (changed,) = set(runs.glob("tc-*")) - {folder}
    assert OmegaConf.load(changed / "config.yaml").optimizer.weight_decay == 0.1  # type: ignore[union-attr]
    assert yaml.safe_load((changed / "overrides.yaml").read_text()) == [*words[:-1], "task.weight_decay=0.1"]
    # Now as advised, on files of the real format.
    data_command.main(["tiny", "tc", "--out", str(tmp_path / "data")])
    cfg = requested(*shlex.split(advice.replace("DIR", str(tmp_path / "data"))))
    assert (cfg.data.profile, cfg.optimizer.weight_decay, cfg.data_dir) == ("full", 0.1, str(tmp_path / "data"))
    assert rerun(*shlex.split(advice.replace("DIR", str(tmp_path / "data")))) == 0
    assert "on subset data" in capsys.readouterr().out


def test_a_run_that_nobody_can_change_gives_no_advice_to_change_it(do: Run, rerun: Any, capsys: Any) -> None:
    _, folder = do(*SHORT)  # from Python: nobody knows what was asked for
    assert not (folder / "overrides.yaml").exists()
    assert rerun(folder / "config.yaml") == 0
    assert "real data" not in capsys.readouterr().out


def test_the_first_process_of_a_run_that_others_launched_keeps_what_was_asked_for(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tmbench.training.train

    monkeypatch.setattr(tmbench.training.train, "train", lambda *rest, **more: [None])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    words = [*SHORT, "trainer=ddp_cpu", f"runs_dir={tmp_path}"]
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        _, folder, _ = run(composed(*words), words=words)
        assert (folder / "config.yaml").exists() == (folder / "overrides.yaml").exists() == (rank == "0")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml"])
def test_the_own_command_of_a_finished_run_writes_what_was_damaged_again(
    name: str, composed: Compose, tmp_path: Path
) -> None:
    words = [*SHORT, f"runs_dir={tmp_path}"]
    _, folder, _ = run(composed(*words), words=words)
    whole = (folder / name).read_bytes()
    for damaged in (whole.replace(b"epochs", b"epoch5"), b"", None):
        (folder / name).unlink() if damaged is None else (folder / name).write_bytes(damaged)
        assert run(composed(*words), words=words)[2] == "shown"
        assert (folder / name).read_bytes() == whole


def test_every_command_line_keeps_what_was_asked_for(
    requested: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run and a sweep's job, as read from its file, with a person's own files; changed from another folder."""
    home = tmp_path / "home"
    optimizer_of_ones_own(home / "mine")
    do_job = sweep.do_job
    monkeypatch.setattr(sweep, "do_job", lambda folder, order: do_job(folder, JobOrder.load(order.save(folder))))
    for name, more in (("one", []), ("job", ["-m"])):
        monkeypatch.chdir(home)
        monkeypatch.setattr(sys, "argv", ["tmbench"])  # which Hydra reads
        assert train(["--config-dir", "mine", *SHORT, "optimizer=mine", f"runs_dir={name}", *more]) == 0
        monkeypatch.chdir(tmp_path)
        (folder,) = (home / name).glob("tc-mine-*")
        expected = [f'hydra.searchpath=["file://{home / "mine"}"]', *SHORT, "optimizer=mine", f"runs_dir={name}"]
        assert yaml.safe_load((folder / "overrides.yaml").read_text()) == expected
        command = shlex.split(json.loads((folder / "result.json").read_text())["command"])
        assert command == ["python", "-m", "tmbench", "--config-dir", str(home / "mine"), *expected[1:]]
        assert requested(folder / "config.yaml", "seed=1").seed == 1
