# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # TM-SGD step by step
#
# This page is a notebook: `docs/notebook.py` in jupytext's format, whose outputs are made by `scripts/docs notebook`. It
# uses `tmbench.optim`, which needs torch alone: first on a formula, then in a bare training loop, then in Lightning.

# %%
import matplotlib.pyplot as plt
import torch

from tmbench.optim import TMSGD, stability

# %% [markdown]
# ## What the step does
#
# SGD follows the differential equation x' = -gradient(x) by Euler's method: it goes straight along the gradient, for a time
# `lr`. TM-SGD replaces that by a four-point Taylor difference:
#
# ```text
# w[k+1] = 1.5 w[k] - w[k-1] + 0.5 w[k-2] - lr g[k]
# ```
#
# Below, both go down a valley that is ten times as steep in one direction as in the other. The dotted line is the exact
# path, which an infinitely small rate would follow. On the left the rate is large, on the right a quarter of that.

# %%
CURVATURES = torch.tensor([1.0, 10.0], dtype=torch.float64)
START = torch.tensor([2.0, 1.0], dtype=torch.float64)


def path(optimizer_class, steps, **settings):
    """The points that an optimizer visits on the valley, (steps + 1, 2)."""
    w = torch.nn.Parameter(START.clone())
    optimizer = optimizer_class([w], **settings)
    points = [w.detach().clone()]
    for _ in range(steps):
        w.grad = CURVATURES * w.detach()
        optimizer.step()
        points.append(w.detach().clone())
    return torch.stack(points)


def exact(times):
    return START * torch.exp(-CURVATURES * times[:, None])


# alt: Left, a large rate: SGD goes down smoothly and TM-SGD swings. Right, a small rate: TM-SGD stays closer to the path.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, lr, steps in zip(axes, (0.08, 0.02), (40, 160), strict=True):
    ax.plot(*exact(torch.linspace(0, lr * steps, 400, dtype=torch.float64)).T, "k:", label="exact")
    for name, points in {
        "SGD": path(torch.optim.SGD, steps, lr=lr),
        "TM-SGD": path(TMSGD, steps, lr=lr, switch_step=2),  # two steps of SGD make the history that it needs
    }.items():
        error = (points - exact(lr * torch.arange(steps + 1, dtype=torch.float64))).norm(dim=1).max()
        ax.plot(*points.T, marker="o", markersize=2, linewidth=1, label=f"{name}, at most {error:.3f} away")
    ax.set(title=f"lr = {lr}", xlabel="flat direction", ylabel="steep direction")
    ax.legend()
plt.show()

# %% [markdown]
# On the left TM-SGD swings in the steep direction: rate times curvature is 0.8 there, close to its limit of 1, and far below
# SGD's 2. On the right the product is 0.2, and TM-SGD stays closer to the exact path than SGD. That is the whole trade: more
# exact, less stable. `stability` computes the limits:

# %%
for name, found in {
    "SGD": stability(torch.optim.SGD),
    "TM-SGD": stability(TMSGD, switch_step=0),
    "TM-SGD, c = 1/3": stability(TMSGD, switch_step=0, c=1 / 3),
    "SGD with momentum 0.9": stability(torch.optim.SGD, momentum=0.9),
    "TM-SGD with momentum 0.9": stability(TMSGD, switch_step=0, momentum=0.9),
}.items():
    print(f"{name:<25} lr * curvature < {found.limit:.4g}")

# %% [markdown]
# With half the rate the error of Euler's method halves and that of the Taylor step falls to a quarter, once the steps are
# small. (Without two steps of SGD before it, `switch_step=0`, the Taylor step begins with an error that it never loses, and is
# no better than SGD here.)

# %%
for lr in (0.04, 0.02, 0.01):
    steps = round(1 / lr)
    truth = exact(torch.tensor([1.0], dtype=torch.float64))[0]
    errors = [
        float((path(cls, steps, lr=lr, **more)[-1] - truth).norm())
        for cls, more in ((torch.optim.SGD, {}), (TMSGD, {"switch_step": 2}))
    ]
    print(f"lr {lr:<5}  SGD {errors[0]:.2e}   TM-SGD {errors[1]:.2e}")

# %% [markdown]
# ## In a bare training loop
#
# TMSGD takes SGD's place. It *is* SGD until `switch_step`, then turns to the Taylor step.

# %%
torch.manual_seed(0)
inputs = torch.randn(512, 20)
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()


def train(make_optimizer, epochs=60):
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    optimizer = make_optimizer(model.parameters())
    losses = []
    for _ in range(epochs):
        total = 0.0
        for part in torch.randperm(512).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs[part]), labels[part])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(part)
        losses.append(total / 512)
    return losses


plain = train(lambda p: torch.optim.SGD(p, lr=0.1))
switched = train(lambda p: TMSGD(p, lr=0.1, switch_step=40 * 16))  # 16 steps an epoch

# alt: Training loss over 60 epochs: both lines are one until epoch 40, then that of TM-SGD leaves SGD's.
figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.semilogy(range(1, 61), plain, label="SGD")
ax.semilogy(range(1, 61), switched, "--", label="TM-SGD after epoch 40")
ax.axvline(40, color="grey", linewidth=1)
ax.set(xlabel="epochs", ylabel="training loss")
ax.legend()
plt.show()
print("bitwise the same until the switch:", plain[:40] == switched[:40])

# %% [markdown]
# ## In Lightning
#
# Return it from `configure_optimizers`. Its state is in Lightning's checkpoints, and a resumed training is bitwise the one
# that was never stopped.

# %%
import logging
import warnings

import pytorch_lightning as pl

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore")


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return TMSGD(self.parameters(), lr=0.1, switch_step=5 * 16)


pl.seed_everything(1, verbose=False)
net = Net()
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=32, shuffle=True)
trainer = pl.Trainer(
    max_epochs=10,
    accelerator="cpu",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(net, loader)
with torch.no_grad():
    accuracy = (net.model(inputs).argmax(1) == labels).float().mean()
print(f"training accuracy after 10 epochs: {accuracy:.3f}")

# %% [markdown]
# Whether it is *better* on your task is a question for several seeds: [15 minutes](tutorial.md).
