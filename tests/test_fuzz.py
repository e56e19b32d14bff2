"""Whatever is typed becomes a run or is refused by a message that names the setting."""

import copy
import itertools
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import choices
from hydra.errors import HydraException

from tmbench.config.compose import composed, prepared
from tmbench.config.identity import before_switch, run_id
from tmbench.config.overrides import check_words, key_of
from tmbench.config.settle import Settings, flat, settled
from tmbench.config.table import GROUPS
from tmbench.errors import ConfigError
from tmbench.verbs import explain, is_expected

VALUES = (
    "", "null", "true", "maybe", "0", "-1", "1", "2", "1.5", "1e-3", "1e400", "99999999999999999999", "nan", "inf",
    "-inf", "abc", "../../x", "[]", "[1]", "[a,b]", "{}", "{a: 1}", "{a: {b: [1, {c: 2}]}}", "''", "' '", "${lr}",
    "${nothing}", "${oc.env:NOPE}", "never", "auto", "0x10", "1_000", "12:30", "é", "x" * 300, "a b", "/dev/null",
    "~", "@", "a=b", "\\'", "'\t'",
)  # fmt: skip


def mutated(count: int, seed: int = 0) -> Iterator[list[str]]:
    """Command lines: a choice of each of some groups, and one to three words that nobody should have typed."""
    chance = random.Random(seed)
    files = {group: choices(group) for group in (*GROUPS, "launcher")}
    known = {task: [*flat(composed([f"task={task}", "optimizer=tmsgd"]))] for task in files["task"]}
    for _ in range(count):
        task = chance.choice(files["task"])
        words = [f"task={task}", f"optimizer={chance.choice(files['optimizer'])}"]
        for _ in range(chance.randint(1, 3)):
            key = chance.choice(
                [*known[task], *known[task], *files, chance.choice([*files]) + "." + chance.choice("abx")]
            )
            if chance.random() < 0.1:  # a typing error
                at = chance.randrange(len(key))
                key = key[:at] + chance.choice("xyz.@+") + key[at + 1 :]
            value = chance.choice([*VALUES, *files.get(key, [])])
            words.append(
                chance.choice(["", "", "", "+", "++", "~"]) + key + chance.choice(["=", "=", "=", "=", ""]) + value
            )
        yield words


def refusal(words: list[str]) -> str:
    """What a person is told; empty if the words settle."""
    try:
        ready = prepared(words)
        check_words(ready)
        settled(composed(ready))
    except Exception as error:
        if not is_expected(error):
            raise AssertionError(words) from error
        return explain(error)
    return ""


@pytest.mark.parametrize("count", [150, pytest.param(750, marks=pytest.mark.slow)])
def test_mutated_words_settle_or_are_refused_by_name(count: int) -> None:
    """So many command lines, with twice as many mutated words."""
    refused = 0
    for words in mutated(count, seed=count):
        if told := refusal(words):
            names = [part for word in words for part in {key_of(word), *re.split("[.@]", key_of(word)), word} if part]
            assert any(name in told for name in names), (words, told)
            assert len(told) < 2500, (words, told)
            refused += 1
    assert 0.1 * count < refused < count


ODD_VALUES = ("", 1, -1, 0.5, float("inf"), float("nan"), None, True, "zzz", "../../x", [], [1], [None], {}, {"a": 1},
              {"a": {"b": []}}, 10**20, 10**400, "${seed}", "${nope}", "${task}", "${", "a\nb")  # fmt: skip


def mutated_settings(rng: random.Random) -> Iterator[tuple[str, Settings]]:
    """The key of a composed configuration at which something odd stands, and all of it."""
    optimizers = choices("optimizer")[:: len(choices("optimizer")) // len(choices("task"))]
    bases = [(f"task={task}", f"optimizer={own}") for task, own in zip(choices("task"), optimizers, strict=False)]
    whole = dict[tuple[str, str], Settings]()
    while True:
        words = rng.choice(bases)
        if words not in whole:
            whole[words] = composed([*words, "trainer=cpu"])
        cfg = copy.deepcopy(whole[words])
        paths = [tuple(key.split(".")) for key in flat(cfg)]
        path = rng.choice(paths)
        path = path[: rng.randint(1, len(path))]
        node: Any = cfg
        for part in path[:-1]:
            node = node[part]
        change = rng.randrange(4)
        if change == 0:
            del node[path[-1]]
        elif change == 1:
            node[rng.choice(["x", "", "_target_", "a.b"])] = node.pop(path[-1])
        else:
            node[path[-1]] = copy.deepcopy(rng.choice(ODD_VALUES))
        yield ".".join(path), cfg


def test_mutated_files_settle_or_are_refused_by_name() -> None:
    """A person's own YAML, or a saved configuration: whatever stands in it, at whatever key, or is missing."""
    settings = mutated_settings(random.Random(0))
    refused = 0
    for key, cfg in itertools.islice(settings, 300):
        try:
            done = settled(cfg)
            before_switch(done)
            assert run_id(done, "").startswith(f"{done['task']['name']}-{done['optimizer']['name']}-")
        except Exception as error:
            if not is_expected(error):
                raise AssertionError(key) from error
            told = explain(error)  # a renamed key is another's, which nothing reads
            if not ("nothing reads" in told or any(part.rstrip("s") in told for part in key.split("."))):
                raise AssertionError((key, told)) from error
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("word", ["task=[1]", "study=1", "launcher.gpus_per_node=[1]", "optimizer.betas.x=1"])
def test_a_command_that_composes_by_itself_refuses_what_hydra_would_stumble_on(word: str) -> None:
    with pytest.raises((HydraException, ConfigError)) as told:
        settled(composed(["optimizer=adam", "launcher=slurm", word]))
    assert key_of(word) in explain(told.value)
