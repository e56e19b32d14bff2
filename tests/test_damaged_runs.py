"""Whatever happens to a file that is read back, no command ends with a traceback, and the other runs are still told."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import tmbench

from tmbench.report.__main__ import main as report

ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", -1, 10**400, 1e308, float("nan"), True, [[1]], {"": {"x": [None]}}, "1e5",
)  # fmt: skip
REMOVED = object()
WORDS = ["task=tc", "seed=0", "epochs=3", "batch_size=80", "switch_epoch=2"]


def seal_json(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def as_result(content: Any) -> str:
    """As result.json is written, with a digest that fits."""
    if not isinstance(content, dict):
        return json.dumps(content)
    facts = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps(facts | {"sha256": seal_json(json.dumps(facts, indent=2))}, indent=2) + "\n"


def as_facts(content: Any) -> str:
    """As sealed JSON is written, with a digest that fits."""
    facts = content["facts"] if isinstance(content, dict) and "facts" in content else content
    return json.dumps({"sha256": seal_json(json.dumps(facts, indent=2)), "facts": facts}, indent=2) + "\n"


def as_yaml(content: Any) -> str:
    text = yaml.safe_dump(content, sort_keys=False)
    return f"# sha256 {seal_json(text)}\n{text}"


def as_json(content: Any) -> str:
    return json.dumps(content) + "\n"


WRITERS: dict[str, tuple[Callable[[str], Any], Callable[[Any], str]]] = {
    "result.json": (json.loads, as_result), "config.yaml": (yaml.safe_load, as_yaml),
    "overrides.yaml": (yaml.safe_load, as_yaml), "about.json": (json.loads, as_facts),
    "trials.json": (json.loads, as_facts), "study.json": (json.loads, as_facts), "choice.json": (json.loads, as_facts),
}  # fmt: skip


def whole_file_ways(path: Path) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Damage to a file of any kind: name, and what does it."""
    content = path.read_bytes()
    texts = {
        "empty": b"", "cut": content[: len(content) // 2], "cut at the end": content[:-1], "one byte": b"{",
        "binary": bytes(range(256)) * 9, "zeros": bytes(len(content)), "a bit": content[:40] + b"\xff" + content[41:],
        "UTF-16": content.decode("latin-1").encode("utf-16"), "null": b"null\n", "a list": b"[]\n", "a dict": b"{}\n",
        "a word": b"word", "a tag": b"!!python/object/apply:os.getcwd []", "a number": b"5", "NaN": b"NaN",
        "huge": b"9" * 5000, "twice": content * 2,
        "deep": b"[" * 99999,
        "two lines": b"\n\n", "a digest alone": b"# sha256 0\n",
        "an alias": b"a: &a [*a]\n", "no key": b"? [a, {b: c}]\n: 1\n", "a date": b"seed: 2020-99-99\n",
    }  # fmt: skip
    for name, text in texts.items():
        yield name, lambda p, text=text: p.write_bytes(text)
    replacements: dict[str, Callable[[Path], Any]] = {
        "missing": lambda p: None, "a folder": Path.mkdir, "a link to nowhere": lambda p: p.symlink_to("nowhere"),
        "a link to itself": lambda p: p.symlink_to(p.name), "a pipe": os.mkfifo,
    }  # fmt: skip
    for name, make in replacements.items():
        yield name, lambda p, make=make: (p.unlink(), make(p))


def value_ways(path: Path) -> Iterator[tuple[str, Callable[[Path], Any]]]:
    """Each value of a file is of a wrong shape, though its digest fits."""
    parse, text_of = WRITERS[path.name]
    content = parse(path.read_text())

    def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        yield at
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            yield from places(value[key], (*at, key))

    def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
        if not at:
            return new
        copy = dict(value) if isinstance(value, dict) else list(value)
        if len(at) == 1 and new is REMOVED:
            del copy[at[0]]
        else:
            copy[at[0]] = changed(copy[at[0]], at[1:], new)
        return copy

    for at in places(content):
        if at and at[-1] != "sha256":
            for new in (*ODD, REMOVED):
                name = f"{'.'.join(map(str, at))} {'removed' if new is REMOVED else repr(new)[:20]}"
                yield name, lambda p, at=at, new=new: p.write_text(text_of(changed(content, at, new)))


def ways(path: Path, most: int = 10**9) -> list[tuple[str, Callable[[Path], Any]]]:
    """All damage to a file of any kind, and `most` wrong values, spread over its keys and kinds."""
    values = list(value_ways(path)) if path.name in WRITERS else []
    step = -(-len(values) // most) if most else 10**6
    return [*whole_file_ways(path), *values[:: step + (step % 14 == 0)]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a sweep, and what they share."""
    folder = tmp_path_factory.mktemp("trained")
    done = tmbench("-m", *WORDS, "optimizer=sgd,tmsgd", f"runs_dir={folder}", f"hydra.sweep.dir={folder}/.sweep")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "curves.csv", "overrides.yaml"])
def test_damage_in_run_folders_leaves_the_other_runs_to_be_told(name: str, trained: Path, tmp_path: Path) -> None:
    (whole,), (other,) = trained.glob("tc-tmsgd-*"), trained.glob("tc-sgd-*")
    shutil.copytree(other, healthy := tmp_path / other.name)
    damage = ways(whole / name, 30)
    for number, (_, do) in enumerate(damage):
        shutil.copytree(whole, place := tmp_path / f"tc-tmsgd-0-{number:012x}")
        do(place / name)
    here = f"runs_dir={tmp_path}"
    for verb in ("list", "list json=true", "list seed=0", "list status=completed", "gc"):
        done = tmbench("runs", *verb.split(), here)
        assert done.returncode == 0
        assert healthy.name[:-8] in done.stdout or verb == "gc"
    assert report([here, f"out={tmp_path}/report"]) == 0
    assert healthy.name in (tmp_path / "report" / "report.json").read_text()
    for number, (what, _) in list(enumerate(damage))[::6]:
        place = f"tc-tmsgd-0-{number:012x}"
        for words in (["runs", "show", place, here], ["runs", "compare", other.name, place, here],
                      ["run", f"{tmp_path}/{place}", "epochs=2", "task.data=x"]):  # fmt: skip
            assert len(tmbench(*words).stderr.splitlines()) < 8, what


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.yaml", "overrides.yaml", "result.json", "curves.csv", "about.json", "state.ckpt", "last.ckpt"]
)
def test_a_run_asked_for_again_is_shown_repeated_or_told_in_one_line(name: str, trained: Path, tmp_path: Path) -> None:
    (run,) = trained.glob("tc-tmsgd-*")
    file = next((trained if name in ("about.json", "state.ckpt") else run).rglob(name)).relative_to(trained)
    for number, (what, do) in enumerate(ways(trained / file, 6)[::5]):
        shutil.copytree(trained, folder := tmp_path / str(number))
        do(folder / file)
        if name in ("about.json", "state.ckpt"):
            shutil.rmtree(folder / run.name)
        if name == "last.ckpt":
            (folder / run.name / "result.json").unlink()
        words = [*WORDS, "optimizer=tmsgd", f"runs_dir={folder}"]
        for more in ([], ["force=true"]):
            done = tmbench(*words, *more)
            assert (done.returncode in (0, 1), "Traceback" in done.stderr) == (True, False), (what, done.stderr)


STRAY = (".trunks/x", ".trunks/T/00001", ".trunks/T/abc.asked-x", ".trunks/T/.asked-3", ".trunks/T/00001.asked-x",
         ".tune/x", "x/config.yaml/y", ".removing-x", "config.yaml", ".sweep/job-00000.json", ".sweep/x")  # fmt: skip


def test_stray_files_stop_no_command(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, folder := tmp_path / "runs")
    trunk = next(folder.glob(".trunks/*")).name
    for name in STRAY:
        stray = folder / name.replace("T", trunk)
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_bytes(b"\xffx")
    words, here = [*WORDS, "optimizer=tmsgd"], f"runs_dir={folder}"
    for each in ([*words, here], ["-m", *words, here, "plan=true"], ["runs", "list", here], ["runs", "gc", here]):
        assert tmbench(*each).returncode == 0
    (run,) = folder.glob("tc-tmsgd-*")
    shutil.rmtree(run)
    assert tmbench(*words, here).returncode == 0
