"""A sweep's jobs several at once: the serial sweep's results, whoever does the jobs and whatever happens to one."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conftest import Compose, Run, choices
from helpers import assert_same, curves, results, tmbench, trained, weights
from omegaconf import OmegaConf
from rich.console import Console

from tmbench.config.identity import run_id
from tmbench.config.settle import settle
from tmbench.config.table import conf_dir
from tmbench.errors import ConfigError
from tmbench.files import read_sealed
from tmbench.result import Result
from tmbench.run import run
from tmbench.sweeps.job import JobOrder, command, record_of
from tmbench.sweeps.launchers import base, local
from tmbench.sweeps.launchers.base import JobsAtWork, RemoteJob, launcher_of
from tmbench.sweeps.plan import Job, RunFinder

# Does what a job's process does, but trains nothing: notes its environment and when it was here.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
file = Path(sys.argv[1])
order = json.loads(file.read_text())
word = order["words"][0].removeprefix("do=")
began = time.monotonic()
time.sleep(0.2)
seen = {key: os.environ.get(key) for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
print(word, "was here")
if word in ("hang", "deaf"):
    if word == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)
if word == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if word == "crash":
    sys.exit("no more words")
error = "it is wrong" if word == "fail" else ""
record = {"sweep": os.environ["TMBENCH_SWEEP"], "number": order["number"], "words": order["words"], "arm": ""}
record |= {"folder": None if error else str(file.parent), "error": error}
file.with_name(f"job-{order['number']:05d}.json").write_text("torn" if word == "tear" else json.dumps(record))
if error:
    sys.exit(1)
seen |= {"began": began, "ended": time.monotonic()}
file.with_suffix(".seen").write_text(json.dumps(seen))
"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """launched([word, ...], key=value) -> what jobs of these words saw in their processes, and what was told."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(base, "COMMAND", [str(script)])
    monkeypatch.setattr(Result, "load", lambda folder: DONE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMBENCH_SWEEP", "this")

    def launched(
        words: list[str], devices: int = 0, num_nodes: int = 1, fail_fast: bool = False, **settings: Any
    ) -> tuple[list[dict[str, Any]], str]:
        trainer = {"accelerator": "cuda" if devices else "cpu", "devices": devices, "num_nodes": num_nodes}
        cfg = {"trainer": trainer, "epochs": 1}
        raw = {"launcher": defaults("local") | settings}
        jobs = [Job(number, [f"do={word}"], raw, cfg=cfg) for number, word in enumerate(words)]
        found = launcher_of(jobs)
        assert found is not None
        found.launch(tmp_path, jobs, fail_fast)
        seen = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("launch-*.seen"))]
        return seen, capfd.readouterr().err

    return launched


DONE = Result.__new__(Result)
vars(DONE).update(status="completed", split="test", metric="accuracy", metrics={"last": {"test/accuracy": 0.5}})


def defaults(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / "launcher" / f"{name}.yaml"))


def at_once(seen: list[dict[str, Any]]) -> int:
    """The most jobs that were there at the same time."""
    return max(sum(a["began"] <= b["began"] < a["ended"] for a in seen) for b in seen)


# One machine.


def test_each_job_has_a_gpu_to_itself(launched: Any) -> None:
    seen, _ = launched(["a", "b", "c", "d", "e"], gpus=[3, 5])
    assert {job["CUDA_VISIBLE_DEVICES"] for job in seen} == {"3", "5"}
    assert at_once(seen) == 2
    for gpu in ("3", "5"):
        assert at_once([job for job in seen if job["CUDA_VISIBLE_DEVICES"] == gpu]) == 1


def test_more_jobs_than_gpus_share_them_evenly(launched: Any) -> None:
    seen, _ = launched(["a", "b", "c", "d"], gpus=[0, "GPU-1f"], n_jobs=4)
    assert sorted(job["CUDA_VISIBLE_DEVICES"] for job in seen) == ["0", "0", "GPU-1f", "GPU-1f"]


def test_runs_that_train_on_gpus_share_out_those_that_cuda_may_use(
    launched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,4,6,7,9")
    seen, _ = launched(["a", "b", "c"], devices=2)
    assert sorted({job["CUDA_VISIBLE_DEVICES"] for job in seen}) == ["2,4", "6,7"]
    seen, _ = launched(["a"])  # on the CPU: not its business
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "2,4,6,7,9"
    with pytest.raises(ConfigError, match=r"launcher.gpus: a run needs 3, got \[0, 1\]"):
        launched(["a"], devices=3, gpus=[0, 1])
    with pytest.raises(ConfigError, match="launcher: each run is on one machine"):
        launched(["a"], devices=1, num_nodes=2)


@pytest.mark.parametrize(
    ("settings", "environment", "threads", "most"),
    [
        ({}, None, 1, 8),
        ({"n_jobs": 2}, None, 4, 2),
        ({"n_jobs": 3}, None, 2, 3),
        ({"threads": 4}, None, 4, 2),
        ({}, "4", 4, 2),
        ({"n_jobs": 1}, "3", 3, 1),
        ({"n_jobs": 16}, None, 1, 12),
        ({"n_jobs": 2, "threads": 8}, "1", 8, 2),  # as asked
    ],
)
def test_cores_are_shared_out_and_not_twice(
    settings: dict[str, Any], environment: str | None, threads: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    found = local.Local(defaults("local") | settings)
    assert found.threads() == threads
    assert found.jobs_at_once(0, 12) == most


@pytest.mark.parametrize(
    ("name", "settings", "gpus", "expected"),
    [
        ("local", {"threads": 2}, 0, 4),
        ("local", {"n_jobs": 3}, 0, 3),
        ("local", {"gpus": [0, 1, 2, 3, 4]}, 2, 2),  # sets of GPUs
        ("slurm", {"cluster": "local"}, 1, 64),
        ("slurm", {"cluster": "local", "array_parallelism": 5}, 0, 5),
        ("ray", {}, 0, 16),  # the cluster is not known yet
    ],
)
def test_how_many_jobs_a_launcher_does_at_once(
    name: str, settings: dict[str, Any], gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 8)
    monkeypatch.setattr(base, "find_spec", lambda name: name)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = launcher_of([Job(0, [], {"launcher": defaults(name) | settings})])
    assert launcher is not None
    assert launcher.at_once(gpus) == expected


def test_a_job_that_dies_leaves_the_others_alone_and_is_told(launched: Any, tmp_path: Path) -> None:
    seen, told = launched(["a", "kill", "fail", "tear", "crash", "c"], n_jobs=2)
    assert len(seen) == 3
    assert re.search(r"^job 0  do=a: completed, accuracy 50.00 %$", told, re.MULTILINE)
    records = [record_of(tmp_path, number) for number in (0, 1, 2, 4, 5)]
    assert [record and record.error.replace(str(tmp_path), "DIR") for record in records] == [
        "", "killed by SIGKILL; its output: DIR/job-00001.log", "it is wrong",
        "ended with status 1; its output: DIR/job-00004.log", "",
    ]  # fmt: skip
    assert re.search(
        r"^job 3  do=tear: \S+/job-00003.json: damaged: .*; give the same command again$", told, re.MULTILINE
    )
    for word in ("kill", "fail", "crash"):
        assert f"  | {word} was here" in told
    assert "  | no more words" in told
    assert "a was here" not in told


def test_a_job_that_hangs_is_ended_and_the_others_are_done(
    launched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "GRACE", 0.2)
    seen, told = launched(["hang", "deaf", "a", "b"], n_jobs=2, timeout=1 / 60)
    assert len(seen) == 2
    end = "launcher.timeout=0.0166667 minutes and was ended; the same command continues from its last epoch"
    for number in (0, 1):
        record = record_of(tmp_path, number)
        assert record is not None
        assert record.error == f"took longer than {end}; its output: {tmp_path}/job-0000{number}.log"
    assert re.search(r"^job 1  do=deaf: failed\n  \| deaf was here$", told, re.MULTILINE)
    order = JobOrder(7, "", ["do=hang"], [], {}, [], ".", {"TMBENCH_SWEEP": "this"}, timeout=0.5 / 60)
    assert RemoteJob(order.save(tmp_path))() == base.TIMED_OUT  # as on Ray


def test_no_job_starts_after_one_has_failed_if_fail_fast_is_set(launched: Any, tmp_path: Path) -> None:
    seen, told = launched(["fail", "a", "b", "c"], n_jobs=1, fail_fast=True)
    assert len(seen) == 0
    assert "job 0  do=fail: failed" in told
    assert "fail_fast: a job has failed, and the others stop where they can be resumed" in told
    assert [record_of(tmp_path, number) for number in (1, 2, 3)] == [None, None, None]
    assert not list(tmp_path.glob("job-0000[123].log"))


@pytest.mark.parametrize("width", [80, 120])
def test_table_on_a_terminal_shows_where_each_job_is(width: int, tmp_path: Path) -> None:
    jobs = {}
    for number in range(5):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        rows = "".join(f"{epoch},0.00{epoch},0.71,3\n" for epoch in range(1, number + 2))
        (folder / "curves.csv").write_text(f"epoch,train/loss,test/accuracy,test/other\n{rows}")
        job = Job(number, ["task=tc", f"task.betas=[{number},2]"], {}, cfg={"epochs": 120}, folder=folder)
        jobs[tmp_path / f"launch-{number:05d}.json"] = [job]
    for number in (0, 1, 2):
        (tmp_path / f"job-{number:05d}.log").touch()
    console, plain = (
        Console(file=StringIO(), force_terminal=on, width=width, height=40, color_system=None) for on in (True, False)
    )
    with JobsAtWork(jobs, console) as at_work:
        at_work.end(tmp_path / "launch-00000.json", 1, stopping=False)
        assert "job 0  task.betas=[0,2]: failed" in console.file.getvalue()  # type: ignore[attr-defined]
        at_work.note = "a note"
        plain.print(at_work.view())
    frame = plain.file.getvalue()  # type: ignore[attr-defined]
    lines = [re.sub(r" {2,}", "  ", line.strip()) for line in frame.splitlines()]
    assert lines[1] == "job  betas  status  epoch  loss  metric  time left"
    assert lines[3:8] == [
        "0  [0,2]  failed  1/120  0.001  71.00 %", "1  [1,2]  running  2/120  0.002  71.00 %",
        "2  [2,2]  running  3/120  0.003  71.00 %", "3  [3,2]  waiting  0/120", "4  [4,2]  waiting  0/120",
    ]  # fmt: skip
    assert lines[9:] == ["5 jobs: 1 failed, 2 running, 2 waiting", "a note"]
    assert max(map(len, frame.splitlines())) <= width


def test_jobs_of_different_trunks_start_first(composed: Compose) -> None:
    """Those of one wait for each other, and a job that waits has a GPU to itself."""
    words = [f"optimizer=tmsgd seed={seed} switch_epoch={e} epochs=4" for seed in (0, 1) for e in (3, 2)]
    jobs = [Job(i, w.split(), OmegaConf.to_container(composed("task=tc", *w.split()))) for i, w in enumerate(words)]
    finder = RunFinder(download=False)
    for job in jobs:
        finder.find(job)
    assert [job.number for (job,) in base.different_trunks_first([[job] for job in jobs])] == [0, 2, 1, 3]


# Settings.


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("local", {"n_jobs": 0}, "launcher.n_jobs: expected a whole number >= 1, or null, got 0"),
        ("local", {"threads": "many"}, "launcher.threads: expected a whole number >= 1, or null, got 'many'"),
        ("local", {"gpus": 2}, "launcher.gpus: expected a list, or null, got 2"),
        ("local", {"gpus": [0, 1.5]}, r"launcher.gpus: expected GPUs as CUDA_VISIBLE_DEVICES has them, got \[0, 1.5\]"),
        ("slurm", {"cluster": "lsf"}, "launcher.cluster: expected one of slurm, local, got 'lsf'"),
        ("slurm", {"cluster": "local", "cpus_per_task": None}, "launcher.cpus_per_task: expected a whole number >= 1"),
        ("slurm", {"cluster": "local", "gpus_per_node": 0.5}, "launcher.gpus_per_node: expected a whole number >= 0"),
        ("ray", {"num_gpus": 1.5}, "launcher.num_gpus: expected a whole number >= 0, or a part of one, got 1.5"),
        ("lsf", {}, "launcher: expected one of serial, local, slurm, ray, got 'lsf'"),
    ],
)
def test_wrong_settings_are_told(
    name: str, settings: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: package)
    own = defaults(name) if name != "lsf" else {"name": name}
    with pytest.raises(ConfigError, match=told):
        launcher_of([Job(0, [], {"launcher": own | settings})])


@pytest.mark.parametrize(
    ("name", "is_installed", "told"),
    [
        ("slurm", False, r"launcher=slurm: needs the package submitit; pip install 'tmbench\[slurm\]'"),
        ("ray", False, r"launcher=ray: needs the package ray; pip install 'tmbench\[ray\]'"),
        ("slurm", True, "no sbatch and srun here"),
    ],
)
def test_what_a_launcher_lacks_here_is_told(
    name: str, is_installed: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda package: package if is_installed else None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=told):
        launcher_of([Job(0, [], {"launcher": defaults(name)})])


def test_run_beside_slurm_is_not_warned_of_it(do: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert shutil.which("srun") == str(tmp_path / "srun")
    do("task=tc", "epochs=1", "batch_size=80")  # a warning is an error here


def test_trouble_of_the_launcher_itself_is_told_also_beside_known_runs(
    do: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any) -> None:
        raise OSError("no more processes")

    words = ["task=tc", "epochs=1", "batch_size=80"]
    do(*words)
    monkeypatch.setattr(local.Local, "run", run)
    told = tmbench("-m", *words, "seed=0,1", "launcher=local", f"runs_dir={tmp_path}")
    assert told.returncode == 1
    assert "no more processes" in told.stderr
    assert "completed, known" in told.stdout


def test_one_launcher_for_a_sweep() -> None:
    jobs = [Job(n, [], {"launcher": defaults("local") | {"n_jobs": n + 1}}) for n in range(2)]
    with pytest.raises(ConfigError, match=r"launcher: expected one for the whole sweep; .* \[0,1\]"):
        launcher_of(jobs)


def test_launcher_is_no_part_of_a_run(composed: Compose) -> None:
    def settled(*words: str) -> Any:
        return settle(composed("task=tc", *words))

    plain = settled()
    assert "launcher" not in plain
    for name in choices("launcher"):
        assert run_id(settled(f"launcher={name}"), "digest") == run_id(plain, "digest")


@pytest.mark.parametrize(
    "words", [["launcher=slurm", "launcher.gpus_per_node=2"], ["launcher=ray", "launcher.num_gpus=1.5"]]
)
def test_gpus_of_another_machine_count_as_those_of_this_one(words: list[str], composed: Compose) -> None:
    assert settle(composed(*words)).trainer.accelerator == "cuda"
    both = settle(composed(*words, "trainer=ddp", "devices=-1"))
    assert (both.trainer.accelerator, both.trainer.devices) == ("cuda", 2)
    with pytest.raises(ConfigError, match="devices: expected at most 2"):
        settle(composed(*words, "trainer=ddp", "devices=3"))
    with pytest.raises(
        ConfigError, match=f"trainer=gpu: {words[0]} gives a run no GPU; say {words[1].split('=')[0]}=1"
    ):
        settle(composed(words[0], "trainer=gpu"))


def test_run_publishes_what_others_ask_for(composed: Compose, tmp_path: Path) -> None:
    words = ["task=tc", "optimizer=sgd", "epochs=3", "batch_size=80", f"runs_dir={tmp_path}"]
    run(composed(*words), requests=[(1, 0), (2, 2)])
    states = {int(path.parent.name): read_sealed(path) for path in tmp_path.glob(".trunks/*/*/about.json")}
    assert {epoch: about["differences"] for epoch, about in states.items()} == {1: 0, 2: 2}


# Sweeps.


def sweep(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """A sweep as a person starts it, with its runs under cwd."""
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tmbench", "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def test_launcher_leaves_no_trace_in_the_commands() -> None:
    words = ["task=tc", "launcher=local", "+launcher.x=1", "lr=0.1", "study=switch", "study.arms={}", "plan=true"]
    assert command(words) == "python -m tmbench task=tc lr=0.1"


def test_former_name_of_a_launcher_is_accepted(composed: Compose) -> None:
    assert composed("launcher=joblib").launcher == composed("launcher=local").launcher


@pytest.mark.slow
def test_sweep_by_local_launcher_ends_as_a_serial_one_does(tmp_path: Path) -> None:
    words = ["task=tc", "epochs=1", "optimizer=tmsgd", "batch_size=80", "optimizer.momentum=0.5,1.1", "switch_epoch=0"]
    code, out, err = done(sweep(*words, "launcher=local", "launcher.n_jobs=2", cwd=tmp_path))
    assert code == 1, err
    assert re.search(r"│ +0 │ 0.5 +│ completed", out)
    assert re.search(r"│ +1 │ 1.1 +│ failed", out)
    assert "job 1 optimizer=tmsgd: tmsgd: momentum must be in [0, 1), got 1.1" in out
    assert f"2 jobs, threads of each: 1; their output: {tmp_path}/runs/.sweeps/" in err
    assert re.search(r"^job 0  optimizer.momentum=0.5: completed, accuracy \d+.\d\d %$", err, re.MULTILINE)
    assert re.search(r"^job 1  optimizer.momentum=1.1: failed$", err, re.MULTILINE)
    assert "  | optimizer=tmsgd: tmsgd: momentum must be in [0, 1), got 1.1" in err
    assert "━" not in err


# The same results everywhere; slow, since each job imports torch anew.

WAYS = {
    "local": ["launcher=local", "launcher.n_jobs=2"],
    "submitit": ["launcher=slurm", "launcher.cluster=local"],
    "slurm": ["launcher=slurm"],
    "ray": ["launcher=ray"],
}
WORDS = ["task=tc", "optimizer=sgd,tmsgd,tmsgdm"]
SHORT = [*WORDS, "switch_epoch=3,1", "epochs=4", "batch_size=20"]
LONG = [*WORDS, "switch_epoch=4", "epochs=16", "batch_size=4"]  # enough to be broken off
OWN = (
    "seconds", "evaluation_seconds", "overhead_seconds", "examples_per_second", "peak_memory_bytes", "started",
    "curves_sha256",  # the curves have seconds, too
)  # fmt: skip


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a Slurm of this one machine."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    if missing := [
        name for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun") if not shutil.which(name, path=path)
    ]:
        pytest.skip(f"no {missing[0]}: apt-get install slurmctld slurmd slurm-client munge")
    script, folder = conf_dir().parent / "scripts" / "slurm_one_node", tmp_path_factory.mktemp("slurm")
    port = 16817 + 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # each of the tests' processes has its own
    environment = {**os.environ, "SLURM_ONE_NODE_PORT": str(port)}
    subprocess.run([script, "start", folder], check=True, timeout=60, stdout=subprocess.DEVNULL, env=environment)
    yield folder / "slurm.conf"
    subprocess.run([script, "stop", folder], check=True, timeout=60)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a launcher that is here."""
    if request.param != "local":
        pytest.importorskip({"slurm": "submitit"}.get(request.param, request.param))
    if request.param == "slurm":
        monkeypatch.setenv("SLURM_CONF", str(request.getfixturevalue("one_node")))
    return WAYS[request.param]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> dict[int, dict[str, tuple[Result, Path]]]:
    """The results of the serial sweeps by their number of epochs."""
    folder = tmp_path_factory.mktemp("serial")
    found = {}
    for words, epochs in ((SHORT, 4), (LONG, 16)):
        (folder / str(epochs)).mkdir()
        ended = tmbench("-m", *words, cwd=folder / str(epochs))
        assert ended.returncode == 0, ended.stderr
        found[epochs] = results(folder / str(epochs) / "runs")
    return found


def assert_same_files(runs: dict[str, tuple[Result, Path]], serial: dict[str, tuple[Result, Path]]) -> None:
    """Bitwise, but for how long it took and who trained the shared epochs."""

    def facts(result: Result) -> dict[str, Any]:
        known = {key: value for key, value in asdict(result).items() if key not in OWN}
        return known | {"epochs": {"asked": result.epochs["asked"], "trained": result.epochs["trained"]}}

    assert runs.keys() == serial.keys()
    for name, (result, folder) in runs.items():
        other, elsewhere = serial[name]
        assert facts(result) == facts(other)
        assert curves(folder) == curves(elsewhere)
        for file in ("last.ckpt", "best.ckpt"):
            assert_same(weights(folder, file), weights(elsewhere, file))
        assert (folder / "config.yaml").read_text() == (elsewhere / "config.yaml").read_text()
        kept = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (folder, elsewhere)]
        assert kept[0] == kept[1]


def processes(folder: Path) -> dict[int, int]:
    """The jobs' own processes of the sweeps in a folder: job number -> process id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            if "tmbench.sweeps.job" in words and os.readlink(path / "cwd") == str(folder):
                found[int(re.sub(r"\D", "", Path(words[-2]).name))] = int(path.name)
    return found


def wait_until(is_so: Callable[[], Any], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def begun(folder: Path, optimizer: str) -> bool:
    """Whether a run of this optimizer has two epochs on disk, and no result."""
    curves = [path for path in folder.glob(f"runs/tc-{optimizer}-*/curves.csv") if len(path.read_text().split()) > 2]
    return any(not (path.parent / "result.json").exists() for path in curves)


@pytest.mark.slow
def test_every_launcher_gives_the_files_of_the_serial_sweep(way: list[str], serial: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    planned, out, _ = done(sweep(*SHORT, *way, "plan=true", cwd=tmp_path / "plan"))
    assert planned == 0
    assert "5 to do, 0 known, 1 the same" in out
    code, out, err = done(sweep(*SHORT, *way, cwd=folder))
    assert code == 0, err
    assert out.count(" completed") == 6
    assert len(re.findall(r"^job \d  optimizer=.*: completed, accuracy", err, re.MULTILINE)) == 5
    found = results(folder / "runs")
    assert_same_files(found, serial[4])
    assert trained(found) == trained(serial[4]) == (4 + 1 + 3) + (4 + 3)  # tmsgdm begins as no other does
    code, out, _ = done(sweep(*SHORT, *way, cwd=folder))
    assert (code, out.count("completed, known")) == (0, 6)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed_job", "ctrl_c"])
def test_a_broken_off_sweep_that_is_started_again_ends_as_the_serial_one(
    how: str, way: list[str], serial: Any, tmp_path: Path
) -> None:
    """A killed job leaves the others alone; Ctrl-C ends all jobs."""
    folder = tmp_path / "sweep"
    process = sweep(*LONG, *way, cwd=folder)
    wait_until(lambda: begun(folder, "tmsgdm") and (how == "killed_job" or begun(folder, "*sgd")))
    if how == "killed_job":
        os.kill(processes(folder)[2], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGINT)
    code, out, err = done(process)
    if how == "killed_job":
        assert code == 1
        assert re.search(r"job 2 killed by SIGKILL; its output: \S+job-00002.log", out)
        assert "job 2  optimizer=tmsgdm: failed" in err
        assert len(results(folder / "runs")) == 2
    else:
        assert code == 130, err
        assert "interrupted" in out
        assert not processes(folder)
    code, out, err = done(sweep(*LONG, *way, cwd=folder))
    assert code == 0, err
    assert how == "ctrl_c" or out.count("completed, known") == 2
    assert_same_files(results(folder / "runs"), serial[16])


@pytest.mark.slow
def test_jobs_end_with_a_killed_sweep(tmp_path: Path) -> None:
    process = sweep(*LONG, *WAYS["local"], cwd=tmp_path)
    wait_until(lambda: begun(tmp_path, "tmsgdm"))
    process.kill()
    process.communicate()
    wait_until(lambda: not processes(tmp_path), 30)
    assert {result.status for result, _ in results(tmp_path / "runs").values()} >= {"interrupted"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["requeue", "time limit", "pre-emption"])
def test_job_that_slurm_queues_again_goes_on(
    how: str, one_node: Path, serial: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm lets it wait for two minutes."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("SLURM_CONF", str(one_node))
    folder = tmp_path / "sweep"
    words = [word.replace("sgd,tmsgd,", "") for word in LONG]
    process = sweep(*words, *WAYS["slurm"], cwd=folder)
    wait_until(lambda: begun(folder, "tmsgdm"))
    (submitted,) = folder.glob("runs/.sweeps/*/submitit/*/*_submitted.pkl")
    job = submitted.name.split("_")[0]
    if how == "requeue":
        subprocess.run(["scontrol", "requeue", job], check=True)
    elif how == "time limit":
        subprocess.run(["scancel", "--signal=USR2", job], check=True)  # as some time before it
    else:
        subprocess.run(["srun", "--partition=high", f"--ntasks={os.cpu_count()}", "true"], check=True, timeout=60)
    code, _, err = done(process)
    assert code == 0, err
    ((name, (result, path)),) = results(folder / "runs").items()
    assert result.status == "completed"
    record = next(folder.glob("runs/.sweeps/*/job-*.json"))
    assert json.loads(record.read_text())["how"] == "resumed"
    other, elsewhere = serial[16][name]
    assert result.metrics == other.metrics
    assert_same(weights(path), weights(elsewhere))
