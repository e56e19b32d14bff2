#!/usr/bin/env bash
# The gradient of an embedding's row changes in its last bits with rows that have nothing to do with it.
# Versions: torch==2.15.0, numpy==2.4.6
#
# nn.Embedding(sparse=True) gives one gradient entry for each look-up. SparseAdam (and SGD with momentum on sparse gradients)
# calls coalesce(), which adds up the entries of a row. On the CPU it sorts the indices by an unstable sort, so the order in
# which a row's entries are added depends on how many other entries there are. With other words at the end of the batch, whose
# loss has no part in this row, the row's gradient and its next weight differ in the last bits; the dense gradient of the same
# batch does not. A run is repeatable, but "the same examples, others beside them" (packing, padding, a larger batch whose
# other rows are masked, several models in one table) is not bitwise the same. unique() with index_add_() adds in the order
# of the batch.
#
# Seen, on a CPU with one thread and Python 3.11:
#   rows of 10 that differ with other entries, on average: coalesce 9.0, dense 0.0, unique + index_add_ 0.0
#   weights after a step of SparseAdam differ: True; by at most 6.0e-08
#
# Installs these versions in a temporary folder (or in FINDINGS_ENV, which is kept). Exits 0 while the behaviour is as
# described, 1 when it has changed.
set -euo pipefail
env=${FINDINGS_ENV:-$(mktemp -d)}
[[ -n ${FINDINGS_ENV:-} ]] || trap 'rm -rf "$env"' EXIT
python3 -m venv "$env"
"$env/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
"$env/bin/python" - <<'PYTHON'
import torch

torch.set_num_threads(1)
ROWS, WIDTH, LOOKUPS, MINE = 1000, 4, 64, 10


def batch(others):
    """Look-ups of rows 0 to 9, with a weight for each in the loss, and then of other rows, which the loss leaves out."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, MINE, (LOOKUPS,), generator=generator)
    weights = torch.randn(LOOKUPS, WIDTH, generator=generator)
    return torch.cat([ids, torch.arange(100, 100 + others)]), torch.cat([weights, torch.zeros(others, WIDTH)])


def table(sparse):
    torch.manual_seed(0)
    return torch.nn.Embedding(ROWS, WIDTH, sparse=sparse)


def gradient(others, sparse):
    embedding, (ids, weights) = table(sparse), batch(others)
    (embedding(ids) * weights).sum().backward()
    return embedding


def by_hand(grad):
    rows, of_row = torch.unique(grad._indices()[0], return_inverse=True)
    values = grad._values()
    return torch.zeros(len(rows), WIDTH).index_add_(0, of_row, values)[:MINE]


ways = {
    "coalesce": lambda others: gradient(others, True).weight.grad.coalesce().values()[:MINE],
    "dense": lambda others: gradient(others, False).weight.grad[:MINE],
    "unique + index_add_": lambda others: by_hand(gradient(others, True).weight.grad),
}
differ = {
    name: sum(bool((way(0)[r] != way(others)[r]).any()) for others in (1, 10, 100) for r in range(MINE)) / 3
    for name, way in ways.items()
}


def stepped(others):
    embedding = gradient(others, True)
    torch.optim.SparseAdam(embedding.parameters(), lr=0.1, eps=0.1).step()
    return embedding.weight.detach()[:MINE]


moved = not torch.equal(stepped(0), stepped(100))
print(f"rows of {MINE} that differ with other entries, on average: {differ}")
print(f"weights after a step of SparseAdam differ: {moved}; by at most {(stepped(0) - stepped(100)).abs().max():.1e}")
as_described = differ["coalesce"] > 0 and differ["dense"] == 0 and differ["unique + index_add_"] == 0 and moved
raise SystemExit(0 if as_described else 1)
PYTHON
