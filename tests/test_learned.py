"""optimizer=learned: the published form, written out again; its weights' file; and its meta-training."""

import copy
import hashlib
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, choices, saved_and_loaded
from helpers import curves
from safetensors import safe_open
from safetensors.torch import load_file, save

from tmbench.config.table import values_of
from tmbench.errors import DataError
from tmbench.learn import pes
from tmbench.learn.__main__ import main
from tmbench.optim import learned as form
from tmbench.optim.learned import SHAPES, Learned
from tmbench.training.learned import OURS, learned, read_weights, write_weights


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {name: torch.randn(s, generator=random, dtype=dtype) / s[0] ** 0.5 for name, s in SHAPES.items()}


class Literal:
    """Metz et al. 2022 and their code, one weight after the other, in numpy; nothing is shared with ours."""

    def __init__(self, w: np.ndarray, net: dict[str, np.ndarray]) -> None:
        self.w, self.net, self.t = w.copy(), net, 0
        self.m, self.v, self.second = [np.zeros_like(w) for _ in range(3)], np.zeros_like(w), [0.0, 0.0, 0.0]
        self.rows, self.columns = [0.0] * 3, [0.0] * 3

    def factors(self, k: int, g2: np.ndarray, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row and column statistics over the whole shape, and what a gradient is multiplied by."""
        shape = g2.shape
        order = np.argsort(shape, kind="stable")
        long, short = int(order[-1]), int(order[-2])
        self.rows[k] = decay * self.rows[k] + (1 - decay) * g2.mean(axis=long, keepdims=True)
        self.columns[k] = decay * self.columns[k] + (1 - decay) * g2.mean(axis=short, keepdims=True)
        row, column = np.asarray(self.rows[k]), np.asarray(self.columns[k])
        of_row = row / (row.mean(axis=short, keepdims=True) + 1e-9)
        factor = 1 / np.sqrt(np.maximum(of_row, 1e-9)) / np.sqrt(np.maximum(column, 1e-9))
        return np.broadcast_to(row, shape), np.broadcast_to(column, shape), np.broadcast_to(factor, shape)

    def step(self, g: np.ndarray) -> None:
        decays = (0.9, 0.99, 0.999)
        self.m = [d * m + (1 - d) * g for d, m in zip(decays, self.m, strict=True)]
        self.v = 0.999 * self.v + 0.001 * g * g
        root = 1 / np.sqrt(self.v + 1e-6)
        adjusted, rows, columns, row_roots, column_roots, moved = [], [], [], [], [], []
        for k, d in enumerate(decays):
            if g.ndim > 1:
                row, column, factor = self.factors(k, g * g + 1e-30, d)
                adjusted.append(g * factor)
                moved.append(self.m[k] * factor)
            else:
                self.second[k] = d * self.second[k] + (1 - d) * (g * g + 1e-30)
                row = column = np.asarray(self.second[k])
                adjusted.append(g / np.sqrt(np.maximum(row + 1e-9, 1e-9)))
                moved.append(self.m[k] / np.sqrt(row + 1e-6))
            rows.append(row)
            columns.append(column)
            row_roots.append(1 / np.sqrt(row + 1e-8))
            column_roots.append(1 / np.sqrt(column + 1e-8))
        inputs = [g, self.w, *self.m, self.v, *[m * root for m in self.m], root, *adjusted, *rows, *columns,
                  *row_roots, *column_roots, *moved]  # fmt: skip
        inputs = [x / np.sqrt(1e-5 + np.mean(x * x)) for x in inputs]
        time = [np.tanh(self.t / s - 1) for s in (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)]
        after = self.w.copy()
        for at in np.ndindex(self.w.shape):
            h = np.array([*(x[at] for x in inputs), *time])
            for i in (0, 1):
                h = np.maximum(h @ self.net[f"w{i}"] + self.net[f"b{i}"], 0)
            d, m = h @ self.net["w2"] + self.net["b2"]
            after[at] -= d * np.exp(m * 0.001) * 0.001
        self.w, self.t = after, self.t + 1


@pytest.mark.parametrize("shape", [(5,), (), (4, 3), (3, 3), (2, 3, 2, 4), (6, 1)])
def test_fifty_steps_are_those_of_the_published_form_written_out(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    net = network()
    literal = Literal(random.normal(size=shape), {name: t.numpy() for name, t in net.items()})
    p = torch.tensor(literal.w, requires_grad=True)
    optimizer = Learned([p], net)
    for _ in range(50):
        g = np.asarray(random.normal(size=shape) * random.choice([1e-3, 1.0, 30.0]))
        p.grad = torch.tensor(g)
        optimizer.step()
        literal.step(g)
    assert np.abs(p.detach().numpy() - literal.w).max() < 1e-12
    assert np.abs(literal.w).max() > 1e-3


def test_a_large_tensor_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(shape: tuple[int, ...]) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        p = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        optimizer = Learned([p], network())
        for _ in range(3):
            p.grad = torch.randn(shape, generator=random, dtype=torch.float64)
            optimizer.step()
        return p.detach()

    shapes = [(9, 4), (4, 9), (7, 2, 3, 3), (3, 2, 2, 2), (5, 5)]
    whole = [trained(shape) for shape in shapes]
    monkeypatch.setattr(form, "AT_ONCE", 8)
    for shape, expected in zip(shapes, whole, strict=True):
        torch.testing.assert_close(trained(shape), expected, rtol=0, atol=1e-15)


def test_a_tensor_without_slope_stays_and_one_without_elements_is_no_trouble() -> None:
    params = [
        torch.ones(3, requires_grad=True),
        torch.empty(0, 4, requires_grad=True),
        torch.ones((), requires_grad=True),
    ]
    optimizer = Learned(params, network(dtype=torch.float32))
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(params[0], torch.ones(3))
    params[2].grad = torch.tensor(0.5)
    optimizer.step()
    assert params[2] != 1
    with pytest.raises(ValueError, match="learned: lr must be >= 0"):
        Learned(params, network(), lr=-1.0)
    with pytest.raises(ValueError, match="weights: expected"):
        Learned(params, {name: t for name, t in network().items() if name != "b2"})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_goes_on_bitwise_from_its_state_and_as_a_copy(dtype: torch.dtype) -> None:
    def stepped(optimizer: Learned, numbers: range) -> list[torch.Tensor]:
        params = optimizer.param_groups[0]["params"]
        for number in numbers:
            random = torch.Generator().manual_seed(number)
            for p in params:
                p.grad = torch.randn(p.shape, generator=random).to(dtype)
            optimizer.step()
        return [p.detach().clone() for p in params]

    def new() -> Learned:
        random = torch.Generator().manual_seed(0)
        params = [torch.randn(s, generator=random).to(dtype).requires_grad_() for s in ((4, 3), (5,))]
        return Learned(params, network(dtype=torch.float32))

    whole, first = stepped(new(), range(10)), new()
    stepped(first, range(5))
    copied, second = copy.deepcopy(first), Learned(first.param_groups[0]["params"], first.weights)
    second.load_state_dict(saved_and_loaded(first.state_dict()))
    for one in (copied, second):
        assert all(map(torch.equal, stepped(one, range(5, 10)), whole))


class TestFile:
    def test_of_the_package_is_the_one_that_the_yaml_names_and_says_what_made_it(self) -> None:
        digest = values_of("optimizer/learned.yaml")["digest"]
        assert digest == hashlib.sha256(OURS.read_bytes()).hexdigest()
        assert sum(t.numel() for t in read_weights(OURS, digest).values()) == 2402
        with safe_open(OURS, "pt") as file:
            about = json.loads(file.metadata()["made_by"])
        assert about["command"].startswith("python -m tmbench.learn seed=0 updates=")
        assert "torch" in json.loads(about["versions"])
        assert OURS.stat().st_size < 12_000

    def test_of_another_network_trains_a_run_of_its_own(self, do: Run, tmp_path: Path) -> None:
        path = tmp_path / "other.safetensors"
        write_weights(path, network(3, torch.float32), {"command": "test"})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        words = [f"optimizer.weights={path}", f"optimizer.digest={digest}"]
        ours, _ = do("task=tc", "optimizer=learned", "epochs=1", "batch_size=64")
        other, _ = do("task=tc", "optimizer=learned", "epochs=1", "batch_size=64", *words)
        assert ours.run_id != other.run_id
        assert ours.metrics["last"]["train/loss"] != other.metrics["last"]["train/loss"]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content[:-1], "safetensors"),
            (lambda content: pickle.dumps({"w0": 1}), "safetensors"),
            (lambda content: save({"w0": torch.zeros(3)}), r"expected \{'w0'"),
            (lambda content: save(network() | {"b1": torch.full((32,), torch.nan)}), "b1 must hold .* finite"),
            (
                lambda content: save(network() | {"b1": torch.full((32,), 1e300, dtype=torch.float64)}),
                "b1 must hold .* finite",
            ),
            (lambda content: content.replace(b'"F64"', b'"F4" ', 1), "safetensors"),
            (
                lambda content: save(network() | {"b1": torch.zeros(32, dtype=torch.int32)}),
                "floating point numbers, got torch.int32",
            ),
        ],
    )
    def test_that_is_another_thing_is_refused(self, change: partial[bytes], message: str, tmp_path: Path) -> None:
        path = tmp_path / "bad.safetensors"
        path.write_bytes(change(save(network())))
        with pytest.raises(DataError, match=message):
            read_weights(path, hashlib.sha256(path.read_bytes()).hexdigest())
        with pytest.raises(DataError, match=r"expected sha256 0+, got .*\n.*optimizer.digest="):
            learned([torch.ones(1, requires_grad=True)], str(path), "0" * 64)


class Sum(pes.Training):
    """Its state is what it has been perturbed by, added up; its loss is the state: the gradient of step t is t."""

    def _begin(self, numbers: int) -> None:
        self.perturbed_NP, self.sum_R = torch.zeros(20_000, numbers), torch.zeros(40_000)
        self.step, self.length = 0, 3 * pes.STEPS

    def _step(self, weights_R: dict[str, torch.Tensor]) -> torch.Tensor:
        self.sum_R = self.sum_R + weights_R["b2"][:, 0]
        self.step += 1
        return self.sum_R.clone()


def test_an_estimate_counts_what_earlier_steps_have_done_to_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean loss over steps 1 to 20 has the slope 10.5, over 21 to 40 it is 30.5: not 10.5, as if begun anew."""
    monkeypatch.setattr(pes, "named", lambda theta: {"b2": theta})
    training = Sum("mlp", 0, 0)
    theta = torch.zeros(2)
    for update, slope in enumerate((10.5, 30.5, 50.5)):
        gradient, _ = training.estimate(theta, update)
        assert gradient.tolist() == pytest.approx([slope, 0], abs=0.04 * slope)


@pytest.mark.parametrize("kinds", [("mlp", "mlp"), pytest.param(("tc", "ctr", "ic"), marks=pytest.mark.slow)])
def test_meta_training_goes_on_bitwise_over_a_break(kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pes, "STEPS", 3)
    monkeypatch.setattr(pes, "LENGTHS", (5, 7))  # so that some begin anew
    whole, first, second = (pes.MetaTraining(1, 9, kinds) for _ in range(3))
    for _ in range(9):
        whole.step()
    for _ in range(4):
        first.step()
    second.load(saved_and_loaded(first.state()))
    for _ in range(5):
        second.step()
    assert torch.equal(second.theta, whole.theta)


def test_the_start_passes_on_the_normalised_momentum() -> None:
    weights = pes.named(pes.first_numbers(0))
    random = torch.Generator().manual_seed(0)
    p, g = torch.randn(40, 30, generator=random), torch.randn(40, 30, generator=random)
    after = form.accumulated(g, form.empty_state(p))
    move = form.step_of(p, g, after, 0, weights)
    adam = after["momenta"][0] * torch.rsqrt(after["square"] + 1e-6)
    assert torch.corrcoef(torch.stack([move.flatten(), adam.flatten()]))[0, 1] > 0.95
    assert 0.5e-3 < move.square().mean().sqrt() < 2e-3


def test_the_command_writes_weights_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["updates=2", f"out={tmp_path}", "json=true"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    path = Path(told["weights"])
    assert read_weights(path, told["sha256"]).keys() == load_file(path).keys()
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 3
    path.unlink()
    assert main(words) == 0  # from its checkpoint
    assert json.loads(capsys.readouterr().out)["sha256"] == told["sha256"]
    assert main(["updates=3", f"out={tmp_path}"]) == 1
    assert "is of {'seed': 0, 'updates': 2}, not of {'seed': 0, 'updates': 3}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in choices("task") if task not in ("ig", "od")])
def test_it_lowers_the_loss_of_tiny_tasks(task: str, do: Run) -> None:
    def last_loss(*words: str) -> float:
        _, folder = do(f"task={task}", *words)
        return float(curves(folder)[-1]["train/loss"])

    untrained = last_loss("optimizer=sgd", "lr=1e-30", "epochs=1")
    assert last_loss("optimizer=learned", "epochs=3") < 0.9 * untrained
