"""One LSTM layer of several replicas at once, since `vmap` has no rule for torch's.

Legend: K replicas, B batch, T places in a sequence, E inputs, H units, G = 4H gates; N = T B.
"""

from typing import Any

import torch
from torch import Tensor

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class _Workspace:
    """What a forward pass leaves for its backward pass, with views of each place, which take long to make."""

    free: "dict[Any, list[_Workspace]]" = {}  # by shape, type and device; for the passes to come

    def __init__(self, slots: int, places: int, batch: int, units: int, like: Tensor) -> None:
        def per_place(width: int) -> Tensor:
            return like.new_empty(slots, places, batch, width)

        self.given, self.slopes = per_place(4 * units), per_place(4 * units)  # of inputs alone; dloss/dgates
        gates, cells = like.new_empty(places, slots, batch, 4 * units), like.new_empty(3, places, slots, batch, units)
        self.outputs = cells[2]
        self.gates, self.i_f = gates.unbind(), gates[..., : 2 * units].unbind()
        self.i, self.f, self.g, self.o = (part.unbind() for part in torch.split(gates, units, -1))
        self.c, self.tanh_c, self.h = (part.unbind() for part in cells)
        self.given_at, self.d = self.given.unbind(1), self.slopes.unbind(1)
        self.d_i_f = self.slopes[..., : 2 * units].unbind(1)
        self.d_i, self.d_f, self.d_g, self.d_o = (part.unbind(1) for part in torch.split(self.slopes, units, -1))
        self.start, self.change = like.new_zeros(slots, batch, units), like.new_empty(slots, batch, units)

    @classmethod
    def of(cls, slots: int, places: int, batch: int, units: int, like: Tensor) -> "tuple[Any, _Workspace]":
        key = (slots, places, batch, units, like.dtype, like.device)
        waiting = cls.free.setdefault(key, [])
        return key, waiting.pop() if waiting else cls(slots, places, batch, units, like)


class StackedLSTM(torch.autograd.Function):
    """Outputs (K, B, T, H) of inputs (K, B, T, E), from a state of zeros; each replica with weights of its own.

    The equations are those of `torch.nn.LSTM`. Arguments: inputs, weight_ih (K, G, E), weight_hh (K, G, H), and the sum
    of the two biases (K, G), with the gates in the order input, forget, cell, output. To be differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, x_KBTE: Tensor, w_KGE: Tensor, u_KGH: Tensor, b_KG: Tensor) -> Tensor:
        slots, batch, places, _ = x_KBTE.shape
        x_KNE = x_KBTE.transpose(1, 2).reshape(slots, places * batch, -1)
        ctx.key, ws = _Workspace.of(slots, places, batch, u_KGH.shape[2], x_KNE)
        # Products of small matrices are three times as fast with contiguous factors.
        u_KHG = u_KGH.mT.contiguous()
        torch.baddbmm(b_KG[:, None], x_KNE, w_KGE.mT.contiguous(), out=ws.given.view(slots, places * batch, -1))
        h, c = None, ws.start
        for t, gates in enumerate(ws.gates):
            if h is None:
                gates.copy_(ws.given_at[t])
            else:
                torch.bmm(h, u_KHG, out=gates).add_(ws.given_at[t])
            ws.i_f[t].sigmoid_()
            ws.g[t].tanh_()
            ws.o[t].sigmoid_()
            torch.mul(ws.i[t], ws.g[t], out=ws.c[t])
            c = ws.c[t].addcmul_(ws.f[t], c)
            torch.tanh(c, out=ws.tanh_c[t])
            h = torch.mul(ws.o[t], ws.tanh_c[t], out=ws.h[t])
        ctx.save_for_backward(x_KNE, w_KGE, u_KGH)
        ctx.workspace = ws
        return ws.outputs.permute(1, 2, 0, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, dy_KBTH: Tensor) -> Any:
        if ctx.workspace is None:
            raise RuntimeError("StackedLSTM: a pass can be differentiated once")
        (x_KNE, w_KGE, u_KGH), ws, ctx.workspace = ctx.saved_tensors, ctx.workspace, None
        slots, batch, places, units = dy_KBTH.shape
        dy = dy_KBTH.transpose(1, 2).contiguous().unbind(1)
        dh, dc, change = dy[-1].clone(), torch.zeros_like(ws.start), ws.change
        for t in reversed(range(places)):
            torch.mul(dh, ws.tanh_c[t], out=ws.d_o[t])
            dc += _tanh_backward(dh.mul_(ws.o[t]), ws.tanh_c[t], grad_input=change)
            torch.mul(dc, ws.g[t], out=ws.d_i[t])
            torch.mul(dc, ws.c[t - 1] if t else ws.start, out=ws.d_f[t])
            torch.mul(dc, ws.i[t], out=ws.d_g[t])
            _sigmoid_backward(ws.d_i_f[t], ws.i_f[t], grad_input=ws.d_i_f[t])
            _sigmoid_backward(ws.d_o[t], ws.o[t], grad_input=ws.d_o[t])
            _tanh_backward(ws.d_g[t], ws.g[t], grad_input=ws.d_g[t])
            if t:
                dh = torch.bmm(ws.d[t], u_KGH, out=dh).add_(dy[t - 1])
                dc *= ws.f[t]
        d_KNG = ws.slopes.view(slots, places * batch, -1)
        dx_KBTE = torch.bmm(d_KNG, w_KGE).view(slots, places, batch, -1).transpose(1, 2)
        before_KNH = ws.outputs[:-1].transpose(0, 1).reshape(slots, (places - 1) * batch, units)
        du_KGH = torch.bmm(d_KNG[:, batch:].mT, before_KNH)
        dw_KGE, db_KG = torch.bmm(d_KNG.mT, x_KNE), d_KNG.sum(1)
        _Workspace.free[ctx.key].append(ws)
        return dx_KBTE, dw_KGE, du_KGH, db_KG
