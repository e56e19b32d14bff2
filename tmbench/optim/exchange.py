"""The gradient of an embedding's rows over several processes (ranks), of which each has read other rows.

Gloo's own sum of sparse tensors can end a process, and NCCL has none; so the rows travel in dense tensors.

Legend: R rows of a rank, M the most of any rank, U rows of all, D numbers in a row.
"""

import torch
from torch import Tensor, distributed, nn


@torch.no_grad()
def average_over_ranks(table: nn.Embedding | nn.EmbeddingBag) -> None:
    """Puts the mean of all ranks' gradients, the same bits on each, in place of a table's sparse gradient.

    Every rank calls it after its backward pass, before the gradient is clipped or a step is taken. The mean is what
    DistributedDataParallel makes of the other gradients; it leaves out a table whose weights do not require a gradient
    when it is made.
    """
    weight, grad = table.weight, table.weight.grad
    if grad is None:
        none = torch.empty(1, 0, dtype=torch.long, device=weight.device)
        grad = torch.sparse_coo_tensor(none, weight[:0], weight.shape, check_invariants=False)
    grad = grad.coalesce()
    rows_R, values_RD = grad.indices()[0], grad.values()
    if table.padding_idx is not None:  # read and without a gradient; stepped on all ranks alike, it is caught up alike
        rows_R = torch.cat([rows_R, rows_R.new_tensor([table.padding_idx])])
        values_RD = torch.cat([values_RD, torch.zeros_like(weight[:1])])
    counts = torch.cat(_of_all(rows_R.new_tensor([len(rows_R)]), [1] * distributed.get_world_size())).tolist()
    rows_U, places = torch.unique(torch.cat(_of_all(rows_R, counts)), return_inverse=True)
    total_UD = weight.new_zeros(len(rows_U), *weight.shape[1:])
    for places_R, of_rank_RD in zip(places.split(counts), _of_all(values_RD, counts), strict=True):
        total_UD.index_add_(0, places_R, of_rank_RD)
    total_UD /= len(counts)
    weight.grad = torch.sparse_coo_tensor(
        rows_U[None], total_UD, weight.shape, is_coalesced=True, check_invariants=False
    )


def _of_all(mine: Tensor, counts: list[int]) -> list[Tensor]:
    """The tensors (R, ...) of all ranks, whose lengths are these counts."""
    padded_M = mine.new_zeros(max(counts), *mine.shape[1:])
    padded_M[: len(mine)] = mine
    found = [torch.empty_like(padded_M) for _ in counts]
    distributed.all_gather(found, padded_M)
    return [t[:count] for t, count in zip(found, counts, strict=True)]
