"""ig: the networks and how they are trained, what judges their pictures, the files they learn from."""

import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import Compose, Run, real_data
from helpers import assert_same, build, count, curves, weights
from PIL import Image
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from web import tiny

from tmbench.config.settle import settle
from tmbench.errors import ConfigError, DataError
from tmbench.seeds import seed_all
from tmbench.task import mean
from tmbench.tasks import pictures
from tmbench.tasks.ig import distances, sneakers
from tmbench.tasks.ig.distances import Frechet, Kernel, PrecisionRecall, Random, share_within
from tmbench.tasks.ig.sneakers import Sneakers
from tmbench.tasks.ig.task import IG, PROGRESS, as_bytes, discriminator, fixed_noise, generator, initialize, moments
from tmbench.training.evaluation import Evaluation
from tmbench.training.loader import TestLoader, TrainLoader


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs and tasks compute in float64: what differs then is no processor's rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_both_networks_have_the_recipe_s_parameters() -> None:
    with torch.device("meta"):
        assert count(generator(64)) == 3_576_704
        assert count(discriminator(64)) == 2_765_568
        assert count(generator(8)) < 3_576_704 / 20


def test_generator_computes_what_its_layers_written_out_do(float64: None) -> None:
    torch.manual_seed(0)
    net = generator(4).train()
    net.apply(initialize)
    x = noise = torch.randn(5, 100, 1, 1)
    convs = [m for m in net if isinstance(m, nn.ConvTranspose2d)]
    norms = [m for m in net if isinstance(m, nn.BatchNorm2d)]
    sides = []
    for i, conv in enumerate(convs):
        x = functional.conv_transpose2d(x, conv.weight, stride=2 if i else 1, padding=1 if i else 0)
        sides.append((x.shape[1], x.shape[2]))
        if i < 4:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            scale, shift = norms[i].weight[:, None, None], norms[i].bias[:, None, None]
            x = ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)
    assert sides == [(32, 4), (16, 8), (8, 16), (4, 32), (3, 64)]
    torch.testing.assert_close(net(noise), x.tanh(), rtol=1e-9, atol=1e-10)


def test_discriminator_computes_what_its_layers_written_out_do(float64: None) -> None:
    torch.manual_seed(0)
    net = discriminator(4).train()
    net.apply(initialize)
    x = pictures = torch.rand(5, 3, 64, 64) * 2 - 1
    convs = [m for m in net if isinstance(m, nn.Conv2d)]
    norms: list[Any] = [None, *(m for m in net if isinstance(m, nn.BatchNorm2d)), None]
    sides = []
    for i, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
        x = functional.conv2d(x, conv.weight, stride=2 if i < 4 else 1, padding=1 if i < 4 else 0)
        sides.append((x.shape[1], x.shape[2]))
        if norm is not None:
            x = functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True)
        if i < 4:
            x = torch.where(x > 0, x, 0.2 * x)
    assert sides == [(4, 32), (8, 16), (16, 8), (32, 4), (1, 1)]
    torch.testing.assert_close(net(pictures), x.flatten(), rtol=1e-9, atol=1e-10)


def test_weights_start_as_in_the_source() -> None:
    torch.manual_seed(0)
    for net in (generator(64), discriminator(64)):
        net.apply(initialize)
        for module in net.requires_grad_(False):
            if isinstance(module, nn.BatchNorm2d):
                assert float(module.weight.mean()) == pytest.approx(1, abs=0.01)
                assert float(module.weight.std()) == pytest.approx(0.02, rel=0.3)
                assert not module.bias.any()
            elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                assert module.bias is None
                assert float(module.weight.mean()) == pytest.approx(0, abs=1e-3)
                assert float(module.weight.std()) == pytest.approx(0.02, rel=0.05)


# How they are trained


def test_losses_are_binary_cross_entropy_of_the_sigmoid_with_labels_1_and_0(composed: Compose) -> None:
    task, _ = build(composed, "ig")
    batch = (task.real_N3HW[:16],)
    torch.manual_seed(1)
    both, own = mean(*task.discriminator_loss(batch)), mean(*task.loss(batch))
    torch.manual_seed(1)
    bce, ones, zeros = nn.BCELoss(), torch.ones(16), torch.zeros(16)
    fake = task.generator(torch.randn(16, 100)[..., None, None])
    judged = task.discriminator(batch[0] / 127.5 - 1).sigmoid(), task.discriminator(fake).sigmoid()
    torch.testing.assert_close(both, bce(judged[0], ones) + bce(judged[1], zeros))
    fake = task.generator(torch.randn(16, 100)[..., None, None])
    torch.testing.assert_close(own, bce(task.discriminator(fake).sigmoid(), ones))


def test_discriminator_s_loss_leaves_the_generator_alone(composed: Compose) -> None:
    task, _ = build(composed, "ig")
    task.discriminator_loss((task.real_N3HW[:4],))[0].backward()
    assert all(p.grad is None for p in task.generator.parameters())
    assert all(p.grad is not None for p in task.discriminator.parameters())


def test_an_epoch_is_a_step_of_d_then_one_of_g_on_every_batch_each_at_its_rate(
    float64: None, composed: Compose, do: Run
) -> None:
    """The run's weights, by hand: plain steps along each player's gradient, D's at its own rate.

    In float32 either way is up to 5e-4 off after this epoch: rounding that later steps take further.
    """
    words = ["optimizer=sgd", "epochs=1", "batch_size=64", "lr=0.05", "task.lr_d=0.002", "task.samples=8",
             "task.width=2"]  # fmt: skip
    _, folder = do("task=ig", *words)
    task, _ = build(composed, "ig", *words)
    seed_all("epoch", 0, 0, 0)
    loader = TrainLoader(task.examples("train"), None, 64, device=torch.device("cpu"), epoch=lambda: 0)
    for ((batch, _),) in next(iter(loader)):
        for net, loss, lr in (
            (task.discriminator, task.discriminator_loss, 0.002), (task.generator, task.loss, 0.05),
        ):  # fmt: skip
            params = list(net.parameters())
            grads = torch.autograd.grad(mean(*loss(batch)), params)
            with torch.no_grad():
                for p, grad in zip(params, grads, strict=True):
                    p -= lr * grad
    trained = weights(folder)
    for name, value in task.state_dict().items():
        if name.startswith(("discriminator.", "generator.")):
            assert value.dtype != torch.float32
            torch.testing.assert_close(trained[name], value, rtol=1e-9, atol=1e-10)
    (row,) = curves(folder)
    assert (float(row["lr_d"]), float(row["lr_g"])) == (0.002, 0.05)


@pytest.mark.draws
def test_a_schedule_scales_both_rates(do: Run) -> None:
    words = ["task=ig", "optimizer=adam", "epochs=3", "batch_size=192", "lr=0.01", "task.lr_d=0", "task.lr_g=0.004"]
    _, folder = do(*words, "task.samples=8", "task.width=2", "schedule=cosine")
    factors = [(1 + math.cos(math.pi * step / 3)) / 2 for step in range(3)]
    assert [float(row["lr_d"]) for row in curves(folder)] == pytest.approx([0.01 * f for f in factors])
    assert [float(row["lr_g"]) for row in curves(folder)] == pytest.approx([0.004 * f for f in factors])


def test_a_rate_that_is_none_is_refused(composed: Compose) -> None:
    for lr in ("-1", "fast", "true", ".inf", ".nan"):
        with pytest.raises(ConfigError, match=r"task\.lr_g: expected a number >= 0, got"):
            settle(composed("task=ig", f"task.lr_g={lr}"))


def test_rates_are_the_run_s_unless_they_are_given(composed: Compose) -> None:
    assert {player.lr for player in build(composed, "ig", "task.lr_d=0")[0].players().values()} == {None}
    full = settle(composed("task=ig", "data=full"))
    assert (full.task.lr_d, full.task.lr_g, full.task.features) == (0, 0, "inception")


# What judges the pictures


def blobs(count: int, dims: int, seed: int, shift: float = 0.0) -> Tensor:
    """Correlated features, (count, dims)."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, dims)) @ (np.eye(dims) + 0.3 * rng.normal(size=(dims, dims)))
    return torch.from_numpy(mixed + shift).float()


def in_parts(metric: Any, real: Tensor, fake: Tensor) -> Any:
    for features, is_real in ((real, True), (fake, False)):
        for part in features.split(17):
            metric.update(part, real=is_real)
    return metric.compute()


def frechet_by_scipy(real: Tensor, fake: Tensor) -> float:
    x, y = real.double().numpy(), fake.double().numpy()
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(gap + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real))


def frechet_by_svd(real: Tensor, fake: Tensor) -> float:
    """The same where there are fewer pictures than features, and sqrtm's matrix is singular.

    With S = A'A and T = B'B, the trace of (S T) ** 0.5 is the sum of the singular values of A B'.
    """
    (mean_a, a), (mean_b, b) = (
        (x.mean(0), (x - x.mean(0)) / math.sqrt(len(x) - 1)) for x in (real.double().numpy(), fake.double().numpy())
    )
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross)


@pytest.mark.parametrize("root", [False, True])
def test_frechet_equals_scipy_s_formula(root: bool) -> None:
    real, fake = blobs(200, 40, 0), blobs(150, 40, 1, shift=0.2)
    expected = frechet_by_scipy(real, fake)
    got = float(in_parts(Frechet(40, root), real, fake))
    assert got == pytest.approx(math.sqrt(expected) if root else expected, rel=1e-4)
    assert frechet_by_svd(real, fake) == pytest.approx(expected, rel=1e-6)
    assert float(in_parts(Frechet(40, root), real, real)) == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
def test_frechet_of_2048_features_is_that_of_the_singular_values() -> None:
    """Of which scipy's sqrtm would take a minute."""
    real, fake = blobs(2400, 2048, 0), blobs(2300, 2048, 1, shift=0.2)
    assert float(in_parts(Frechet(2048), real, fake)) == pytest.approx(frechet_by_svd(real, fake), rel=1e-3)


def mmd_by_numpy(real: Tensor, fake: Tensor) -> float:
    """The unbiased estimate of the squared MMD with the kernel (x.y / D + 1) ** 3."""
    x, y = real.double().numpy(), fake.double().numpy()
    n, dims = x.shape
    xx, yy, xy = ((a @ b.T / dims + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (xx, yy))
    return float(within - 2 * xy.mean())


def test_kid_equals_numpy_s_mmd_and_draws_nothing_of_the_run_s(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = blobs(120, 30, 0), blobs(120, 30, 1, shift=0.3)
    before = torch.get_rng_state()
    assert float(in_parts(Kernel(30), real, fake)) == pytest.approx(mmd_by_numpy(real, fake), rel=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    # More pictures than a subset takes: near the whole set's, and the same each time.
    real, fake = blobs(3000, 4, 2), blobs(2500, 4, 3, shift=0.5)
    once, again = (float(in_parts(Kernel(4), real, fake)) for _ in range(2))
    assert once == again
    assert once == pytest.approx(mmd_by_numpy(real[:2500], fake), rel=0.1)


def share_by_loops(points: Tensor, centres: Tensor) -> float:
    p, c = points.double().numpy(), centres.double().numpy()
    inside = 0
    for point in p:
        for i, centre in enumerate(c):
            others = sorted(float(np.linalg.norm(centre - other)) for j, other in enumerate(c) if j != i)
            if np.linalg.norm(point - centre) <= others[2]:
                inside += 1
                break
    return inside / len(p)


def test_precision_and_recall_equal_a_naive_loop_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", 7)
    real, fake = blobs(40, 5, 0), blobs(30, 5, 1, shift=0.5)
    values = in_parts(PrecisionRecall(), real, fake)
    for name, points, centres in (("precision", fake, real), ("recall", real, fake)):
        assert float(values[name]) == pytest.approx(share_by_loops(points, centres))
        assert 0 < values[name] < 1


def test_precision_and_recall_tell_good_pictures_without_diversity() -> None:
    """As Kynkaanniemi et al. require: one of two modes is precise and recalls half, whatever the seed."""
    real = torch.cat([blobs(200, 3, 0), blobs(200, 3, 0) + 1000])
    one_mode = real[:200] + 1e-3
    values = in_parts(PrecisionRecall("x_"), real, one_mode)
    assert float(values["x_precision"]) == 1
    assert float(values["x_recall"]) == 0.5
    same = in_parts(PrecisionRecall(), real, torch.full((50, 3), 1e6))
    assert (float(same["precision"]), float(same["recall"])) == (0, 0)


def test_exact_copies_among_the_pictures_are_within_their_own_manifold() -> None:
    points = blobs(50, 2048, 0).repeat(6, 1)
    assert float(share_within(points, points)) == 1


@pytest.mark.parametrize("metric", [lambda: Frechet(6), lambda: Kernel(6), PrecisionRecall])
def test_what_was_seen_of_the_real_pictures_outlives_a_reset(metric: Callable[[], Any]) -> None:
    real, fake = blobs(60, 6, 0), blobs(60, 6, 1, shift=0.4)
    own = metric()
    in_parts(own, real, blobs(60, 6, 5))
    own.reset()
    for part in fake.split(17):
        own.update(part, real=False)
    assert own.compute() == in_parts(metric(), real, fake)


def test_random_features_are_the_same_in_every_run_and_draw_nothing_of_its() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8))
    before = torch.get_rng_state()
    one, other = Random()(pictures)["random"], Random()(pictures)["random"]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, other)
    assert one.shape == (4, 64)
    assert one.sum().item() == pytest.approx(70.948, rel=1e-4)  # on any machine


def test_every_picture_goes_through_the_network_once_and_real_ones_once_a_run(composed: Compose) -> None:
    task, _ = build(composed, "ig", "task.samples=24")
    task.eval()
    seen, (own,) = [], task.networks

    def counted(pictures_B3HW: Tensor) -> dict[str, Tensor]:
        assert pictures_B3HW.dtype == torch.uint8
        seen.append(len(pictures_B3HW))
        return own(pictures_B3HW)

    task.networks = [counted]
    for evaluation in range(2):
        Evaluation(task).start()
        for batch in TestLoader(task.examples("test"), None, 10, device=torch.device("cpu")):
            with torch.no_grad():
                task.evaluate(batch)
        assert sum(seen) == 192 + 24 * (evaluation + 1)
        task.metrics.compute()


def test_headline_says_what_judged_and_names_are_never_shared(composed: Compose, inception: Path) -> None:
    random, _ = build(composed, "ig")
    assert random.headline == "random_frechet"
    assert all(key.startswith("random_") for key in random.metrics)
    task, _ = build(composed, "ig", "task.features=inception", "task.resnet34=false")
    assert task.headline == "fid"
    assert not task.higher_is_better
    assert count(task) == count(random)  # what only looks is no part of the model
    assert task.state_dict().keys() == random.state_dict().keys()
    assert_same(weights_of(task), weights_of(random))  # and takes no draws of its beginning


def weights_of(task: Any) -> dict[str, Tensor]:
    return dict(task.state_dict())


@pytest.fixture(scope="session")
def weights_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch.hub's folder, with random weights in the place of the published ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchvision.models import resnet34

    home = tmp_path_factory.mktemp("hub")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    empty = folder / "empty.pth"
    torch.save({}, empty)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(empty))
    generator = torch.Generator().manual_seed(0)
    for model, name in ((net, "pt_inception-2015-12-05-6726825d.pth"), (resnet34(), "resnet34-b627a593.pth")):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # so that something arrives at the end
                fan = module.weight[0].numel()
                module.weight.data.normal_(0, (2 / fan) ** 0.5, generator=generator)
        torch.save(model.state_dict(), folder / name)
    return home


@pytest.fixture
def inception(weights_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(weights_files))
    monkeypatch.setattr(pictures, "digest_of", lambda path: path.stem.rpartition("-")[2])
    return weights_files / "hub" / "checkpoints"


def test_inception_sees_pictures_resized_without_antialiasing_in_minus_1_to_1(inception: Path) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    file = str(inception / "pt_inception-2015-12-05-6726825d.pth")
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))
    seen = distances.Inception()(pictures)
    for kind in ("64", "2048"):
        for antialias in (False, True):
            oracle = NoTrainInceptionV3("inception-v3-compat", [kind], file, antialias)(pictures)
            assert torch.allclose(seen[kind], oracle, rtol=1e-4) == (not antialias)
    # By hand, to the first pooling: TensorFlow 1 samples at i * 64 / 299.
    at = torch.arange(299) * (64 / 299)
    low, part = at.long(), at - at.long()
    high = (low + 1).clamp(max=63)
    x = pictures.float()
    x = x[..., low, :] * (1 - part)[:, None] + x[..., high, :] * part[:, None]
    x = x[..., low] * (1 - part) + x[..., high] * part
    net = distances.Inception().net
    x = net.MaxPool_1(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3((x - 128) / 128))))
    torch.testing.assert_close(seen["64"], x.mean((2, 3)), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_run_judged_by_inception_has_the_distances_of_independent_formulas(
    inception: Path, composed: Compose, do: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sneakers, "TINY_COUNT", 10)  # Inception takes its time
    words = ["task.features=inception", "task.samples=10", "epochs=1", f"runs_dir={tmp_path}"]
    result, folder = do("task=ig", "optimizer=adam", *words)
    assert set(result.metrics["last"]) >= {
        f"test/{key}" for key in ("fid", "fid64", "kid", "softmax_fid", "precision", "recall")
    }
    assert result.headline == "test/fid"
    assert result.parameters < 200_000
    task, _ = build(composed, "ig", *words)
    task.load_state_dict(weights(folder))
    task.eval()
    with torch.no_grad():
        fake = as_bytes(task.generate(fixed_noise("samples", 10)))
        parts = {
            kind: [torch.cat([net(p)[kind] for p in pictures.split(16)]) for pictures in (task.real_N3HW, fake)]
            for kind, net in (("64", task.networks[0]), ("2048", task.networks[0]), ("softmax", task.networks[1]))
        }
    got = {key.removeprefix("test/"): value for key, value in result.metrics["last"].items()}
    for name, kind, power in (("fid", "2048", 1), ("fid64", "64", 1), ("softmax_fid", "softmax", 2)):
        assert got[name] ** power == pytest.approx(frechet_by_svd(*parts[kind]), rel=1e-3)
    assert got["kid"] == pytest.approx(mmd_by_numpy(*parts["2048"]), rel=1e-3)  # a subset is the whole set
    assert got["precision"] == pytest.approx(share_by_loops(parts["2048"][1], parts["2048"][0]))
    assert got["recall"] == pytest.approx(share_by_loops(*parts["2048"]))


def test_resnet_s_probabilities_are_those_of_torchvision_s_own_preprocessing(inception: Path) -> None:
    from torchvision.models import resnet34

    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8))
    seen = distances.ResNet()(pictures)["softmax"]
    net = resnet34()
    net.load_state_dict(torch.load(inception / "resnet34-b627a593.pth"))
    normalize = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = v2.Compose([v2.Resize(224), v2.ToDtype(torch.float32, scale=True), normalize])
    torch.testing.assert_close(seen, net.eval()(transform(pictures)).softmax(1), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(seen.sum(1), torch.ones(2))


def test_missing_weights_name_the_file_its_address_its_place_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for network, file in (
        (distances.Inception, "weights-inception-2015-12-05-6726825d.pth"), (distances.ResNet, "resnet34-b627a593.pth"),
    ):  # fmt: skip
        with pytest.raises(DataError, match="no route") as error:
            network()
        told = str(error.value)
        assert f"{tmp_path}/hub/checkpoints/{file}" in told
        assert "https://" in told
        assert f"into {tmp_path}/hub/checkpoints\n" in told
        assert "task.features=random" in told


def test_weights_that_are_others_or_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    mark = tmp_path / "ran"

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    for network, name in (
        (distances.Inception, "weights-inception-2015-12-05-6726825d.pth"), (distances.ResNet, "resnet34-b627a593.pth"),
    ):  # fmt: skip
        path = folder / name
        torch.save({"some": torch.ones(1)}, path)
        for content in (path.read_bytes(), b"", b"no weights", pickle.dumps(Runs()), pickle.dumps({"a": 1})):
            path.write_bytes(content)
            with pytest.raises(DataError, match=rf"^{path}: not the published weights \(its sha256"):
                network()
            with monkeypatch.context() as patch:  # even if its digest were right
                patch.setattr(pictures, "digest_of", lambda path: path.stem.rpartition("-")[2])
                with pytest.raises(DataError, match=f"^{path}: not the published weights"):
                    network()
    assert not mark.exists()


def test_without_torch_fidelity_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ConfigError, match=r"pip install 'tmbench\[fid\]', or use task\.features=random"):
        distances.Inception()


# The files


def opened(root: Path, runs_dir: Path) -> Sneakers:
    data = Sneakers(root)
    data.opened = runs_dir, data.digests()
    return data


def test_pictures_are_read_in_order_as_torchvision_resizes_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    sizes = {"b.jpg": (128, 128), "a.jpg": (470, 470), "c.jpg": (90, 50)}
    for name, (width, height) in sizes.items():
        noise = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        noise.resize((width, height)).save(tmp_path / "images" / name, quality=90)
    pictures = Sneakers(tmp_path).read()
    assert pictures.shape == (3, 3, 64, 64)
    assert pictures.dtype == np.uint8
    for picture, name in zip(pictures, sorted(sizes), strict=True):
        image = v2.Resize((64, 64))(Image.open(tmp_path / "images" / name))
        np.testing.assert_array_equal(picture, np.array(image).transpose(2, 0, 1))


def test_pictures_in_other_modes_become_red_green_and_blue(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = Image.new("RGB", (80, 80), (40, 40, 40))
    for mode, kind in (("L", "JPEG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("P", "PNG")):
        (image.quantize(4) if mode == "P" else image.convert(mode)).save(tmp_path / "images" / f"{mode}.jpg", kind)
    pictures = Sneakers(tmp_path).read()
    assert pictures.shape == (4, 3, 64, 64)
    assert abs(pictures.astype(int) - 40).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_that_ends_early_is_named_wherever_it_ends(kind: str, tmp_path: Path) -> None:
    path, noise = tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, kind)
    content = path.read_bytes()
    for kept in (1, 20, 300, len(content) // 2, len(content) - 300):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=f"^{path}: not a readable picture"):
            Sneakers.picture(path)


def test_pictures_are_decoded_once_for_each_content_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, runs = tmp_path / "data", tmp_path / "runs"
    tiny(Sneakers, root)
    decoded, own = [], Sneakers.picture
    monkeypatch.setattr(Sneakers, "picture", staticmethod(lambda path: decoded.append(path) or own(path)))
    first = opened(root, runs).read()
    assert len(decoded) == 192
    np.testing.assert_array_equal(opened(root, runs).read(), first)
    assert len(decoded) == 192
    (root / "images" / "shoe0000.jpg").unlink()
    np.testing.assert_array_equal(opened(root, runs).read(), first[1:])
    assert len(decoded) == 192 + 191


@pytest.mark.slow
def test_a_run_evaluated_seldom_is_the_run_evaluated_always_with_gaps(do: Run) -> None:
    words = ["task=ig", "optimizer=adam", "epochs=7", "batch_size=96", "task.width=2", "task.samples=8", "ema=0.9"]
    always, whole = do(*words)
    seldom, gaps = do(*words, "task.evaluate_every=100")
    assert_same(weights(gaps), weights(whole))
    assert seldom.metrics["last"] == always.metrics["last"]
    rows = zip(curves(gaps), curves(whole), strict=True)
    for epoch, (row, full) in enumerate(rows, 1):
        for key, value in full.items():
            # Neither a moment of the progress picture nor the last.
            skipped = key.startswith("test") and epoch in (3, 6)
            assert row[key] == ("" if skipped else value)
    assert seldom.metrics["best"][seldom.headline] == min(
        float(row[seldom.headline]) for row in curves(gaps) if row[seldom.headline]
    )


# What a person looks at


@pytest.mark.slow
def test_progress_holds_the_same_noise_at_its_moments(do: Run, composed: Compose) -> None:
    _, folder = do("task=ig", "optimizer=adam", "epochs=7", "batch_size=64", "task.samples=8")
    state = weights(folder)
    assert state["progress_epochs"].tolist() == [1, 0, 2, 4, 5, 7]  # two rows would be due after the first epoch
    assert state["progress"].dtype == torch.uint8
    task, _ = build(composed, "ig")
    task.load_state_dict(state)
    task.eval()
    with torch.no_grad():
        last = as_bytes(task.generate(fixed_noise("pictures", 64)[: PROGRESS[1]]))
    assert torch.equal(state["progress"][-1], last)
    assert not torch.equal(state["progress"][0], last)
    assert not state["progress"][1].any()
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {"curves", "samples", "progress"}


def test_moments_are_whole_epochs_that_end_with_the_last() -> None:
    assert moments(120) == [4, 14, 30, 54, 84, 120]
    for epochs in range(1, 50):
        assert moments(epochs)[-1] == epochs
        assert moments(epochs) == sorted(moments(epochs))
        assert moments(epochs)[0] >= 1


def test_runs_are_drawn_side_by_side_beside_real_pictures(composed: Compose) -> None:
    tasks = {f"run {lr}": build(composed, "ig", f"lr={lr}")[0].eval() for lr in (1, 2)}
    for task in tasks.values():
        task.progress_epochs[0] = 1
    with torch.no_grad():
        figures = dict(IG.compare(tasks))
    assert [ax.get_title() for ax in figures["samples"].axes] == ["real", "run 1", "run 2"]
    assert [ax.get_title() for ax in figures["progress"].axes] == ["run 1", "run 2"]
    real = figures["samples"].axes[0].images[0].get_array()
    np.testing.assert_array_equal(real[2:66, 2:66], next(iter(tasks.values())).real_N3HW[0].permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_ig_trains_on_the_real_subset_and_says_so(do: Run) -> None:
    root = real_data("sneakers").parent
    words = ["task=ig", "optimizer=adam", "optimizer.betas=[0.55,0.999]", "lr=2e-3", "task.features=random"]
    result, _ = do(*words, "data=full", f"data_dir={root}", "task.width=8", "epochs=20", "batch_size=16")
    assert result.profile == "subset"
    assert result.status == "completed"
    untrained, _ = do(*words, "data=full", f"data_dir={root}", "task.width=8", "epochs=1", "lr=1e-30")
    assert result.metrics["last"][result.headline] < 0.7 * untrained.metrics["last"][result.headline]


def test_losses_and_distances_are_float32_in_mixed_precision(composed: Compose) -> None:
    task, _ = build(composed, "ig", "task.width=4")
    real = task.real_N3HW[:8]
    task.look(real, real=True)
    task.look(real.flip(3), real=False)
    expected = float(task.metrics.compute()[task.headline])
    other, _ = build(composed, "ig", "task.width=4")
    with torch.autocast("cpu", torch.bfloat16):
        totals = [player.loss((real,))[0] for player in other.players().values()]
        other.look(real, real=True)
        other.look(real.flip(3), real=False)
    assert [total.dtype for total in totals] == [torch.float32] * 2
    assert float(other.metrics.compute()[other.headline]) == expected
