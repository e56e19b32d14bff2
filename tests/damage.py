"""Ways to damage a file that is read back: whole files of odd content, and wrong values whose digest fits."""

import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

ODD: tuple[Any, ...] = (
    None, [], {}, "", "x", -1, 10**400, 1e308, float("nan"), True, [[1]], {"": {"x": [None]}}, "1e5",
)  # fmt: skip
REMOVED = object()


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
