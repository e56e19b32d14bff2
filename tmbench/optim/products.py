"""The products of the matrices by which the steps that a row has missed move it.

Legend: R rows, S tensors of the state, G steps.
"""

import torch
from torch import Tensor, nn

BLOCK = 2048  # steps whose products are multiplied on in every step


class Products:
    """The products A[k-1] ... A[j] of the matrices of the last k - j steps, for all j; float64.

    No product is the quotient of two others, which would lose what has died out. The products from each step of the
    latest BLOCK steps are multiplied on in every step; those of an earlier block end with the block, and one matrix
    for each such block holds the steps since.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.count = size, 0  # S; k
        self._inner = torch.zeros(size, 0, dtype=torch.float64, device=device)  # (S, G S): of j to the end of its block
        self._unit = torch.eye(size, dtype=torch.float64, device=device)
        self._since = self._inner  # (S, blocks S): from the end of each closed block to the start of the open one

    def append(self, matrix: Tensor) -> None:
        """Adds the matrix (S', S) of a step; a state may gain tensors, which were zero before."""
        if len(matrix) > self.size:
            self._grow(len(matrix))
        size, inside = self.size, self.count % BLOCK
        if inside == 0:
            self._close()
        begin, end = (self.count - inside) * size, self.count * size
        if inside:
            self._inner[:, begin:end] = matrix @ self._inner[:, begin:end]
        self._inner[:, end : end + size] = matrix
        self._inner[:, end + size : end + 2 * size] = self._unit  # of no step
        self.count += 1

    def from_(self, steps_R: Tensor) -> Tensor:
        """The products of the steps from these, each at most k, to the last; (R, S, S)."""
        size, opened = self.size, (self.count - 1) // BLOCK
        inner_RSS = self._inner.view(size, -1, size).index_select(1, steps_R).transpose(0, 1)
        if opened == 0:
            return inner_RSS
        begin = opened * BLOCK * size
        later = self._inner[:, begin : begin + size] @ self._since
        later = torch.cat([later, self._unit], 1).view(size, -1, size).transpose(0, 1)
        return later[(steps_R // BLOCK).clamp_(max=opened)] @ inner_RSS

    def _close(self) -> None:
        """Closes the open block, and makes room for the next."""
        size = self.size
        if self.count:
            begin = (self.count - BLOCK) * size
            whole = self._inner[:, begin : begin + size]
            self._since = torch.cat([whole @ self._since, self._unit], 1)
        room = self._inner.shape[1] // size - self.count
        if room <= BLOCK:
            self._inner = nn.functional.pad(self._inner, (0, (max(BLOCK, self.count) + 1) * size))

    def _grow(self, size: int) -> None:
        def grown(flat: Tensor) -> Tensor:
            more = size - self.size
            return nn.functional.pad(flat.view(self.size, -1, self.size), (0, more, 0, 0, 0, more)).flatten(1)

        self._inner, self._since, self.size = grown(self._inner), grown(self._since), size
        self._unit = torch.eye(size).to(self._unit)
