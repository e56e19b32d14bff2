"""Writes docs/reference/any.md: what `optimizer=any` reaches, as `tmbench certify list` says it.

tmbench certify list json=true | python scripts/any_page.py
"""

import json
import sys
from collections import Counter
from pathlib import Path

HEAD = """# What optimizer=any reaches

```text
tmbench task=tc optimizer=any optimizer.name=Adadelta
```

takes any class below, with the library's defaults. The table is what `tmbench certify list` printed with {versions}:
{counts}. It is made by short checks on small quadratics, with a rate of 0.01: it says what a person can rely on, not
what trains well.

| column | |
|---|---|
| holds, fails | checks of `tmbench certify`: their number, and the names of those that fail |
| closure | `step()` needs one |
| state | numbers kept for each weight of a 256 x 256 matrix |
| elements | *alone*: two networks stepped as one stack ended as each by itself, in 64 steps |

**Licences.** {licences} Nothing of these libraries is part of tmbench; it calls them where you ask for them.

| optimizer | library | holds | fails | closure | state | elements | paper |
|---|---|--:|---|---|--:|---|---|
"""


def main() -> None:
    entries = json.load(sys.stdin)
    versions = " and ".join(sorted({entry["library"] for entry in entries}))
    able = [entry for entry in entries if not entry["problem"]]
    closed = ", ".join(f"`{entry['name']}` ({entry['licence']})" for entry in entries if entry["licence"])
    clean = sum(not entry["fails"] for entry in able)
    counts = f"{len(entries)} classes, {len(able)} of which take a step as they are; in {clean} no check fails"
    licences = f"These forbid commercial use: {closed}." if closed else "None forbids commercial use."
    lines = [HEAD.format(versions=versions, counts=counts, licences=licences).rstrip("\n")]
    for entry in able:
        paper = f"[paper]({entry['paper']})" if entry["paper"] else ""
        cells = [f"`{entry['name']}`", entry["library"].split()[0], str(entry["holds"]), ", ".join(entry["fails"]),
                 "needs" * entry["closure"], f"{entry['state']:g}", "alone" * entry["elementwise"], paper]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    failed = Counter(check for entry in able for check in entry["fails"])
    told = ", ".join(f"{check} ({count})" for check, count in failed.most_common())
    lines += ["", f"Checks that fail, and in how many: {told}.", "", "Not taken as they are:", ""]
    lines += [f"- `{entry['name']}`: {entry['problem']}" for entry in entries if entry["problem"]]
    Path("docs/reference/any.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
