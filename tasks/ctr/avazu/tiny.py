"""A tiny click log in the same format."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from .kinds import COLUMNS, HEXADECIMAL

TINY_ROWS, TINY_DAYS = 6000, 4


def write_csv(path: Path, columns: Mapping[str, Iterable[str]]) -> None:
    rows = map(",".join, zip(*columns.values(), strict=True))
    path.write_text("\n".join([",".join(columns), *rows]) + "\n", encoding="utf-8")


def tiny_columns(rng: np.random.Generator) -> dict[str, list[str]]:
    """Rows in which site, place, model and hour decide much, a sixth of them clicked; all else is noise."""
    count = TINY_ROWS
    columns: dict[str, list[str]] = {
        "id": sorted(str(i) for i in rng.integers(10**18, 2**64, count, np.uint64)),  # as Kaggle's: by their text
        "click": [],
    }
    hours = np.sort(rng.integers(0, 24 * TINY_DAYS, count))
    columns["hour"] = [f"1410{21 + h // 24}{h % 24:02d}" for h in hours]
    logit = np.where(hours % 24 < 8, -1.5, 0.5)
    sizes = {"C1": 5, "banner_pos": 4, "device_ip": 2000, "device_id": 400, "C14": 100, "C17": 40, "C20": 60}
    for name in COLUMNS[3:]:
        size = sizes.get(name, 12)
        chosen = np.minimum(rng.geometric(3 / size, count) - 1, size - 1)
        if name in ("site_id", "app_category", "banner_pos", "device_model", "C21"):
            logit += rng.normal(0, 2, size)[chosen]
        if name in HEXADECIMAL:
            words = [f"{v:08x}" for v in rng.choice(2**32, size, replace=False)]
        else:
            words = [str(v) for v in rng.choice(1000, size, replace=False) - (name == "C20")]
        columns[name] = [words[v] for v in chosen]
    logit -= np.quantile(logit, 5 / 6)
    columns["click"] = [str(int(v)) for v in rng.random(count) < 1 / (1 + np.exp(-2 * logit))]
    return {name: columns[name] for name in COLUMNS}
