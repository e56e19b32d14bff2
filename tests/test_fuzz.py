"""Whatever is typed becomes a run or is refused by a message that names the setting."""

import random
import re
from collections.abc import Iterator

import pytest
from conftest import choices

from tmbench.config.compose import composed, prepared
from tmbench.config.overrides import check_words, key_of
from tmbench.config.settle import flat, settled
from tmbench.config.table import GROUPS
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


@pytest.mark.parametrize("count", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_mutated_words_settle_or_are_refused_by_name(count: int) -> None:
    """So many command lines, with twice as many mutated words."""
    refused = 0
    for words in mutated(count, seed=count):
        if told := refusal(words):
            names = [part for word in words for part in {key_of(word), *re.split("[.@]", key_of(word)), word} if part]
            assert any(name in told for name in names), (words, told)
            assert len(told) < 2500, (words, told)
            refused += 1
    assert 0.1 < refused / count < 0.99
