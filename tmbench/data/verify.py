"""Is what is here the published data set, a subset of it, broken, or missing?"""

from pathlib import Path

from ..errors import DataError
from ..files import digest_of
from . import Dataset
from .catalogue import Entry, manifest
from .files import digests_of

Verdict = tuple[str, list[str]]  # full, subset, broken or missing; and why


def verify(entry: Entry, dataset: Dataset | None, root: Path) -> Verdict:
    """Reads every file anew and compares it with the catalogue; with a reader, also reads every example.

    `full` is said of files that are all known by digest or, where none is known, by how many rows there are. All else
    that can be read is a `subset`.
    """
    absent = entry.absent(root)
    if len(absent) == len(entry.files):
        return "missing", entry.advice(root)
    needed = [file for file in absent if not file.tasks or entry.part]
    if needed:
        return "broken", [*(f"no {root / file.path}" for file in needed), *entry.advice(root)]
    here = sorted({path for file in entry.files for path in file.under(root)})
    if empty := [path for path in here if not path.stat().st_size]:
        return "broken", [f"{path}: the file is empty" for path in empty]
    reasons = [f"no {file.path} ({', '.join(file.tasks)} needs it)" for file in absent]
    try:
        counts = dataset.counts() if dataset else {}
        read = list(dataset.files()) if dataset else here
    except DataError as error:
        return "broken", str(error).splitlines()
    for archive in entry.archives:
        if (path := root / archive.path).is_file() and (wrong := archive.wrong(path)):
            reasons.append(f"{archive.path}: {wrong}")
        out = manifest(root, archive)
        changed = [name for name, d in out.items() if not (root / name).is_file() or digest_of(root / name) != d]
        if changed:
            others = f"{len(changed):,} of {len(out):,} files are not as in {archive.path}"
            reasons.append(f"{others}; the first is {changed[0]}")
    reasons += [difference for file in entry.files for difference in file.differences(root)]
    for split, count in counts.items():
        if not reasons and count != entry.counts.get(split, count):
            reasons.append(f"{split}: {count:,} of {entry.counts[split]:,} examples")
    if not reasons and not entry.is_official(root, digests_of(root, read)):
        reasons.append("the counts are the published ones, but the digests of these files are not known")
        reasons += [f"with {a.path} beside them, `get` compares each file with it" for a in entry.archives]
    if reasons:
        return "subset", reasons
    numbers = ", ".join(f"{split} {count:,}" for split, count in (counts or entry.counts).items())
    alone = ["no digest of them is known; only the number of their rows was compared"] if entry.by_count else []
    return "full", [f"the published files: {numbers}", *alone]
