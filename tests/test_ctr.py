"""ctr: how Avazu's text becomes indices, the network, its metrics against scikit-learn, its figures."""

import calendar
import csv
import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import web
from conftest import Compose, Run, real_data
from helpers import assert_mean_of_examples, build, count, first_batch
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score
from torch.nn.functional import binary_cross_entropy_with_logits, embedding, linear

from tmbench.config.settle import settle
from tmbench.errors import ConfigError, DataError
from tmbench.task import mean
from tmbench.tasks.ctr.avazu import Avazu, AvazuX1, AvazuX4, Table, indexing, tiny_columns, write_csv
from tmbench.tasks.ctr.avazu import columns as reader
from tmbench.tasks.ctr.avazu.columns import HEXADECIMAL
from tmbench.tasks.ctr.avazu.indexing import OF_HOUR, SPLITS
from tmbench.tasks.ctr.task import AUC, WideDeep
from tmbench.training.evaluation import Evaluation

SIZES = [25, 3, 1491, 7]


# The network


@pytest.mark.parametrize(("hidden", "width"), [([256, 128], 4), ([2000] * 4, 16), ([], 3)])
def test_the_network_has_the_parameters_of_the_closed_form(hidden: list[int], width: int) -> None:
    with torch.device("meta"):
        model = WideDeep(SIZES, width, hidden)
    ends = [len(SIZES) * width, *hidden]
    layers = sum(a * b + b for a, b in pairwise(ends))
    assert count(model) == sum(SIZES) * (width + 1) + layers + ends[-1] + 1


def test_the_network_computes_what_one_table_for_each_field_would() -> None:
    torch.manual_seed(0)
    model = WideDeep(SIZES, 4, [6, 5], init_std=0.5)
    indices = torch.stack([torch.randint(size, (50,)) for size in SIZES], 1)
    indices[0], indices[1] = torch.tensor(SIZES) - 1, 0
    fields = model.table.weight.split(SIZES)
    wide = sum(embedding(indices[:, f], own[:, 4:]) for f, own in enumerate(fields))
    deep = torch.cat([embedding(indices[:, f], own[:, :4]) for f, own in enumerate(fields)], 1)
    state = model.state_dict()
    for name in ("deep.0", "deep.2"):
        deep = linear(deep, state[f"{name}.weight"], state[f"{name}.bias"]).clamp(min=0)
    expected = (wide + deep @ state["deep.4.weight"].T).squeeze(1) + state["bias"]
    torch.testing.assert_close(model(indices), expected)
    torch.testing.assert_close(model(indices.int()), expected)


def test_dropout_is_after_each_layer_and_embeddings_begin_small() -> None:
    torch.manual_seed(0)
    model = WideDeep([5000], 4, [6, 5], dropout=0.1)
    kinds = [type(layer).__name__ for layer in model.deep]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert model.table.weight.std().item() == pytest.approx(1e-4, rel=0.03)


def test_the_loss_is_cross_entropy_plus_the_penalty_on_embeddings_and_linear_weights(composed: Compose) -> None:
    task, _ = build(composed, "ctr", "task.l2=0.01", "task.init_std=0.1", "task.sparse=false")
    *groups, clicks = first_batch(task, 32)
    expected = binary_cross_entropy_with_logits(task.predict(groups), clicks.float())
    penalty = 0.01 * (task.model.table.weight.detach().double() ** 2).sum()
    loss = mean(*task.loss((*groups, clicks)))
    assert loss.item() == pytest.approx(expected.item() + penalty.item(), rel=1e-6)


def test_sizes_follow_from_the_model_s_name_and_can_each_be_set(composed: Compose) -> None:
    deepctr = settle(composed("task=ctr")).task
    assert (deepctr.hidden, deepctr.embedding, deepctr.l2, deepctr.min_count) == ([256, 128], 4, 1e-5, 1)
    bars = settle(composed("task=ctr", "task.model=bars_x4", "task.embedding=8")).task
    assert (bars.hidden, bars.embedding, bars.dropout, bars.l2, bars.min_count) == ([2000] * 4, 8, 0.1, 0.0, 2)
    with pytest.raises(ConfigError, match=r"task\.model: expected one of deepctr, bars_x4, got 'wdl'"):
        settle(composed("task=ctr", "task.model=wdl"))


# Metrics


def judged(composed: Compose, logits: np.ndarray, clicks: np.ndarray) -> dict[str, float]:
    """The metrics by name, of a network that says these logits, in batches."""
    task, _ = build(composed, "ctr")
    task.predict = lambda groups: groups[0]
    for part in np.array_split(np.arange(len(logits)), 7):
        task.evaluate((torch.from_numpy(logits[part]), torch.from_numpy(clicks[part]).to(torch.uint8)))
    return Evaluation(task).values()


def test_metrics_equal_scikit_learn_s_on_the_same_predictions(composed: Compose) -> None:
    """To rounding in float64, where scikit-learn takes the same logits; far below the 1e-4 that a result is told to."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-2, 1.5, 200_000).astype(np.float32).round(3)  # rounded: ties
    clicks = rng.random(len(logits)) < 1 / (1 + np.exp(0.3 - logits))
    got = judged(composed, logits, clicks)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert got["test/auc"] == pytest.approx(roc_auc_score(clicks, logits), abs=1e-12)
    assert got["test/log_loss"] == pytest.approx(log_loss(clicks, p), abs=1e-9)
    assert got["test/accuracy"] == pytest.approx(accuracy_score(clicks, p > 0.5), abs=1e-7)
    assert got["test/click_ratio"] == pytest.approx(p.sum() / clicks.sum(), abs=1e-9)
    bins = np.minimum((p * 20).astype(int), 19)
    gaps = [abs(p[bins == b].mean() - clicks[bins == b].mean()) * (bins == b).mean() for b in range(20)]
    assert got["test/calibration_error"] == pytest.approx(sum(gaps), abs=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 30.0), (30.0, 0.0), (1e30, 0.0), (0.1, 0.5)])
def test_the_auc_is_scikit_learn_s_at_any_size_of_the_logits(scale: float, shift: float, composed: Compose) -> None:
    """Also where float32 has one sigmoid for all, and where all logits look like probabilities."""
    rng = np.random.default_rng(1)
    clicks = rng.random(5000) < 0.3
    logits = ((rng.normal(0, 1, 5000) + clicks) * scale + shift).astype(np.float32)
    got = judged(composed, logits, clicks)
    assert got["test/auc"] == pytest.approx(roc_auc_score(clicks, logits), abs=1e-12)
    assert got["test/accuracy"] == pytest.approx(accuracy_score(clicks, logits > 0), abs=1e-7)


def test_the_auc_of_few_examples_is_by_hand_and_ties_count_half() -> None:
    metric = AUC()
    metric.update(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0, 1, 0]))
    metric.update(torch.tensor([3.0, 0.0]), torch.tensor([1, 1]))
    assert float(metric.compute()) == (1 + 0.5 + 2 + 0) / 6


def test_the_roc_figure_orders_by_logits(composed: Compose) -> None:
    task, _ = build(composed, "ctr")
    clicks = task.examples("test").tensors[-1]
    task.predict = lambda groups: 40 + torch.rand(len(groups[0]))  # all sigmoids are 1
    logits, same = task.said()
    assert torch.equal(same, clicks)
    assert len(logits.unique()) > len(clicks) / 2


def test_the_baseline_is_scikit_learn_s_for_the_training_rows_share_of_clicks(composed: Compose) -> None:
    task, _ = build(composed, "ctr")
    clicks = {split: task.examples(split).tensors[-1].numpy() for split in ("train", "test")}
    constant = np.full(len(clicks["test"]), clicks["train"].mean())
    baseline = task.baseline()
    assert baseline["log_loss"] == pytest.approx(log_loss(clicks["test"], constant))
    assert baseline["auc"] == roc_auc_score(clicks["test"], constant) == 0.5
    assert baseline["accuracy"] == pytest.approx(1 - clicks["test"].mean())
    assert baseline["click_ratio"] == pytest.approx(constant.sum() / clicks["test"].sum())
    assert 0.15 < constant[0] < 0.19
    assert baseline.keys() == {key.removeprefix("test/") for key in task.metrics}


# From text to indices


def opened(cls: type[Avazu], root: Path, runs: Path) -> Avazu:
    data = cls(root)
    data.opened = runs, data.digests()
    return data


def tiny(tmp_path: Path, cls: type[Avazu] = Avazu) -> Avazu:
    return opened(cls, web.tiny(cls, tmp_path / cls.folder).root, tmp_path / "runs")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def indices(table: Table) -> np.ndarray:
    return np.concatenate([group.astype(int) for group in table.groups], 1)


def fields_of(row: dict[str, str]) -> dict[str, int]:
    """A row's values as numbers, as one would say them by hand."""
    day, hour = row["hour"][:6], int(row["hour"][6:])
    weekday = calendar.weekday(2000 + int(day[:2]), int(day[2:4]), int(day[4:]))
    values = {"hour": hour, "weekday": weekday, "weekend": int(weekday in (calendar.SATURDAY, calendar.SUNDAY))}
    for name, text in row.items():
        if name not in ("id", "click", "hour"):
            values[name] = int(text, 16) if name in HEXADECIMAL else int(text) % 2**32  # -1 comes last
    return values


@pytest.mark.parametrize(("min_count", "block"), [(1, 700), (2, reader.BLOCK), (9, 700)])
def test_indices_are_those_of_the_values_frequent_in_the_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, min_count: int, block: int
) -> None:
    monkeypatch.setattr(reader, "BLOCK", block)
    data = tiny(tmp_path, AvazuX4)
    rows = {split: read_csv(data.root / f"{split}.csv") for split in SPLITS}
    values = {split: [fields_of(row) for row in own] for split, own in rows.items()}
    counts = {name: Counter(row[name] for row in values["train"]) for name in values["train"][0]}
    kept = {name: sorted(v for v, n in own.items() if n >= min_count) for name, own in counts.items()}
    number = {name: {v: i for i, v in enumerate(own, 1)} for name, own in kept.items()}
    for split in SPLITS:
        table = data.table(split, min_count=min_count)
        assert sorted(table.names) == sorted(kept)
        assert table.sizes == [1 + len(kept[name]) for name in table.names]
        expected = [[number[name].get(row[name], 0) for name in table.names] for row in values[split]]
        assert np.array_equal(indices(table), expected)
        assert table.clicks_N.tolist() == [int(row["click"]) for row in rows[split]]
        assert isinstance(table.groups[0], np.memmap)
        assert [str(group.dtype) for group in table.groups] == ["uint8", "int16"][: len(table.groups)]
    if min_count > 1:
        unknown = (indices(data.table("test", min_count=min_count)) == 0).any(0)
        assert unknown[table.names.index("device_ip")]
    assert len(OF_HOUR) + 21 == len(kept) == 24


def test_x1_has_the_22_fields_it_came_with(tmp_path: Path) -> None:
    data = tiny(tmp_path, AvazuX1)
    table = data.table("train")
    rows = read_csv(data.root / "train.csv")
    place = table.names.index("feat_10")
    kept = sorted({int(row["feat_10"]) for row in rows})
    assert len(table.names) == 22
    assert indices(table)[:, place].tolist() == [1 + kept.index(int(row["feat_10"])) for row in rows]
    for path in data.files():  # as pandas writes numbers once one was missing
        text = path.read_text()
        head, rest = text.split("\n", 1)
        path.write_text(head + "\n" + rest.replace(",", ".0,").replace("\n", ".0\n"))
    again = opened(AvazuX1, data.root, tmp_path / "runs").table("train")
    assert np.array_equal(indices(again), indices(table))
    assert np.array_equal(again.clicks_N, table.clicks_N)


def test_a_random_split_has_every_row_once_and_the_same_share_of_clicks(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    rows = read_csv(data.root / "train.csv")
    few = ["hour", "weekday", "C1", "banner_pos", "site_id", "C21"]  # so frequent that none is unknown
    kept = {name: sorted({fields_of(row)[name] for row in rows}) for name in few}
    found: Counter[tuple[int, ...]] = Counter()
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        table = data.table(split)
        assert len(table.clicks_N) == pytest.approx(share * len(rows), abs=1)
        assert table.clicks_N.sum() == pytest.approx(share * sum(row["click"] == "1" for row in rows), abs=1)
        columns = [[kept[name][i - 1] for i in indices(table)[:, table.names.index(name)]] for name in few]
        found.update(zip(*columns, table.clicks_N.tolist(), strict=True))
    assert found == Counter((*(fields_of(row)[name] for name in few), int(row["click"])) for row in rows)


def test_the_split_and_the_sample_follow_from_their_seed_alone(tmp_path: Path) -> None:
    data = tiny(tmp_path)

    def some(**settings: Any) -> list[Any]:
        return [t.tolist() for t in data.table("test", **settings).groups]

    again = opened(Avazu, data.root, tmp_path / "other")
    assert some() == [t.tolist() for t in again.table("test").groups]
    assert some() != some(split_seed=1)
    assert some(rows=1000) != some(rows=1000, split_seed=1)


@pytest.mark.parametrize(("cls", "block"), [(Avazu, 512), (AvazuX4, reader.BLOCK), (AvazuX4, 512)])
def test_a_random_sample_has_as_many_rows_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Avazu], block: int
) -> None:
    monkeypatch.setattr(reader, "BLOCK", block)
    data = tiny(tmp_path, cls)
    assert sum(len(data.table(split, rows=2345).clicks_N) for split in SPLITS) == 2345
    assert sum(len(data.table(split, rows=6000).clicks_N) for split in SPLITS) == 6000
    with pytest.raises(ConfigError, match=r"task\.rows: expected at most 6,000, as many as there are, got 6,001"):
        data.table("train", rows=6001)


def test_the_first_rows_are_those_of_a_shorter_file(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    short = tmp_path / "short"
    short.mkdir()
    lines = (data.root / "train.csv").read_text().splitlines(True)
    (short / "train.csv").write_text("".join(lines[:1501]))
    other = opened(Avazu, short, tmp_path / "runs")
    for split in SPLITS:
        a, b = data.table(split, rows=1500, sample="first"), other.table(split)
        assert np.array_equal(indices(a), indices(b))
        assert np.array_equal(a.clicks_N, b.clicks_N)


def test_a_split_by_day_tests_on_the_last_and_holds_out_the_one_before(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    rows = read_csv(data.root / "train.csv")
    days = Counter(row["hour"][:6] for row in rows)
    counts = [len(data.table(split, split="day").clicks_N) for split in SPLITS]
    assert counts == [days["141021"] + days["141022"], days["141023"], days["141024"]]
    for kept, expected in ((2, [days["141021"], 0, days["141022"]]), (1, None)):
        own = [row for row in rows if row["hour"] < f"1410{21 + kept}00"]
        write_csv(data.root / "train.csv", {name: [row[name] for row in own] for name in own[0]})
        some = opened(Avazu, data.root, tmp_path / "runs")
        if expected:
            assert [len(some.table(split, split="day").clicks_N) for split in SPLITS] == expected
        else:
            with pytest.raises(ConfigError, match=r"all rows are of one day, 141021; use task\.split=random"):
                some.table("train", split="day")


@pytest.mark.parametrize("name", ["train.gz", "train.csv.gz"])
def test_a_gz_reads_as_the_file_in_it(tmp_path: Path, name: str) -> None:
    data = tiny(tmp_path)
    plain = data.table("test")
    content = (data.root / "train.csv").read_bytes()
    (data.root / "train.csv").unlink()
    half = content.index(b"\n", len(content) // 2) + 1  # in two members, as pigz and concatenation make them
    (data.root / name).write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    packed = opened(Avazu, data.root, tmp_path / "runs").table("test")
    assert np.array_equal(indices(plain), indices(packed))


def test_ids_beyond_int64_and_float64_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = tiny_columns(np.random.default_rng(0))
    top = 2**64 - 6000
    columns["id"] = [str(top + i) for i in range(6000)]  # in float64 all of them are the same three numbers
    root = tmp_path / "avazu"
    root.mkdir()
    write_csv(root / "train.csv", columns)
    assert Avazu(root).counts() == {"train": 6000}
    columns["id"][4999] = columns["id"][1]
    write_csv(root / "train.csv", columns)
    monkeypatch.setattr(reader, "BLOCK", 1000)
    with pytest.raises(DataError, match=rf"line 5001, id: expected each id once, {top + 1} is on line 3 already"):
        Avazu(root).counts()


def test_an_id_in_two_files_is_named_in_both(tmp_path: Path) -> None:
    data = tiny(tmp_path, AvazuX4)
    first = (data.root / "train.csv").read_text().splitlines()[7]
    with (data.root / "test.csv").open("a") as f:
        f.write(first + "\n")
    with pytest.raises(DataError, match=r"test\.csv, line 602, id: .* is on .*train\.csv, line 8 already"):
        data.counts()


def test_x4_reads_without_the_ids_and_with_columns_in_another_order(tmp_path: Path) -> None:
    data = tiny(tmp_path, AvazuX4)
    table = data.table("train")
    for path in data.files():
        rows = read_csv(path)
        write_csv(path, {name: [row[name] for row in rows] for name in reversed(rows[0]) if name != "id"})
    again = opened(AvazuX4, data.root, tmp_path / "runs").table("train")
    assert again.names == table.names
    assert np.array_equal(indices(again), indices(table))


def test_fields_with_more_values_than_buckets_are_hashed(tmp_path: Path) -> None:
    data = tiny(tmp_path, AvazuX4)
    table = data.table("test", buckets=50)
    whole = data.table("test")
    assert dict(zip(table.names, table.sizes, strict=True)) == {
        name: min(size, 50) for name, size in zip(whole.names, whole.sizes, strict=True)
    }
    rows = read_csv(data.root / "test.csv")
    known = np.array([0, 1, 0xDEADBEEF], np.uint32)
    assert indexing.hashed(known).tolist() == [0, 0x514E28B7, 0x0DE5C6A9]  # as MurmurHash3's fmix32 says
    assert len(np.unique(indexing.hashed(np.arange(10**6, dtype=np.uint32)))) == 10**6
    expected = indexing.hashed(np.array([int(row["device_ip"], 16) for row in rows], np.uint32)) % 50
    assert indices(table)[:, table.names.index("device_ip")].tolist() == expected.tolist()


def test_hexadecimal_digits_are_those_that_int_reads_and_no_others() -> None:
    rng = np.random.default_rng(0)
    numbers = np.concatenate([[0, 2**32 - 1], rng.integers(0, 2**32, 1000)])

    def words(text: bytes) -> np.ndarray:
        return np.frombuffer(text, ">u8").astype("u8")

    assert reader.from_hex(words(b"".join(b"%08x" % n for n in numbers))).tolist() == numbers.tolist()
    for byte in set(range(256)) - set(b"0123456789abcdef"):
        for place in (0, 3, 7):
            text = bytearray(b"12ab9f0c")
            text[place] = byte
            with pytest.raises(reader.Refused):
                reader.from_hex(words(b"00000000" + bytes(text)))


def test_a_kill_in_the_second_stage_leaves_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny(tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(indexing.Indexing, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            data.table("train")
    folders = [path for path in (tmp_path / "runs" / ".prepared").iterdir() if path.name != ".avazu"]
    assert [(path / "train.device_ip").is_file() for path in folders] == [True]
    monkeypatch.setattr(Avazu, "store", killed)  # not done again, nor for other settings
    assert len(data.table("train").clicks_N) == 4800
    assert len(data.table("train", min_count=2, split_seed=3).clicks_N) == 4800


def test_what_is_asked_of_the_data_is_checked(tmp_path: Path) -> None:
    data = tiny(tmp_path)
    for key, value in (("rows", -1), ("min_count", 0), ("min_count", None), ("buckets", "many"), ("rows", 1.5)):
        with pytest.raises(ConfigError, match=rf"task\.{key}: expected a whole number >= \d, got {value!r}"):
            data.table("train", **{key: value})
    with pytest.raises(DataError, match="with and without a click in the train split, got 0 with and 5 without"):
        data.table("train", rows=6, sample="first")
    with pytest.raises(ConfigError, match="there is no setting bins"):
        data.table("train", bins=3)


# Runs


@pytest.mark.draws
@pytest.mark.parametrize("dataset", ["avazu_x4", "avazu_x1"])
def test_tiny_sets_of_the_given_splits_train(dataset: str, do: Run) -> None:
    result, folder = do("task=ctr", f"task.dataset={dataset}", "optimizer=adam", "epochs=1", "batch_size=64")
    assert result.metrics["last"]["test/auc"] > 0.75
    assert result.metrics["last"]["test/log_loss"] < result.baseline["test/log_loss"] - 0.05
    assert (folder / "figures" / "calibration.png").is_file()
    assert_mean_of_examples(result, folder, "test/log_loss", higher_is_better=False)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "tmsgd", "adam"])
def test_the_real_sample_trains_above_its_base_rate(optimizer: str, do: Run) -> None:
    root = real_data("avazu").parent
    lr = 1e-3 if optimizer == "adam" else 0.1
    words = [f"optimizer={optimizer}", f"lr={lr}", "epochs=6", "switch_epoch=3", "batch_size=64"]
    result, _ = do("task=ctr", "data=full", f"data_dir={root}", *words)
    best = result.metrics["best"]
    print(optimizer, best, result.baseline)
    assert result.profile == "subset"
    assert best["test/auc"] > 0.65
    assert best["test/log_loss"] < result.baseline["test/log_loss"] - 0.02
