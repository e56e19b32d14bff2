"""Replicas of a task in one process: their tensors stacked along a new first axis, so that each operation is done once.

A stack has a number of slots, K. Those that are spare repeat the last replica, and nobody looks at them. So what a
replica computes depends on K alone, and neither on its neighbours nor on its place.

A step's losses come from `torch.func.vmap` over the task's own `loss`; vmapped.py has what is done in another way.

Legend: K slots, N rows of a table, B batch, E numbers in a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CannotStackError
from ..seeds import seed_all
from ..task import Loss, Player, Table, Task, checked_loss
from .parts import Group, joined, sliced, tables_of_parts
from .stackable import check_alike
from .vmapped import OwnRandomNumbers, batch_norm, forwards_as, look_up, lstm


class _Loss(nn.Module):
    """A player's loss as the forward pass of a module, which functional_call wants."""

    def __init__(self, task: Task, player: Player) -> None:
        super().__init__()
        self.task, self.player = task, player

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        total, weight = checked_loss(self.player, batch)
        return total, torch.as_tensor(weight, device=total.device)


class Stack(Task):
    """Tasks that differ by their seed alone, as one whose parameters, losses and states are theirs, stacked.

    Their optimizers may have different learning rates: those of one rate are a part of the stack.

    The parameters and buffers of each task are views of the stacked ones, so that it can be evaluated, drawn and saved
    as ever. A parameter has shape (K, *its own), an embedding's table (K x N, E). `loss` gives sums and weights (K,).

    Args:
        replicas: the tasks, each with the initial weights of its seed.
        seeds: theirs.
        slots: K, at least as many.
        rates: how many of the replicas, in their order, share a learning rate; all if empty.

    Raises:
        CannotStackError: says why.
    """

    replicas: list[Task]
    first: Task

    def __init__(self, replicas: Sequence[Task], seeds: Sequence[int], slots: int, rates: Sequence[int] = ()) -> None:
        nn.Module.__init__(self)
        check_alike(replicas)
        first = replicas[0]
        self._modes = [(m, m.training) for replica in replicas for m in replica.modules()]  # some may stay in eval mode
        self.__dict__ |= {"replicas": list(replicas), "first": first}  # no submodules: their parameters are not ours
        for replica in replicas[1:]:  # which reads none of its own
            replica.__dict__ |= {"examples": first.examples, "as_evaluated": first.as_evaluated}
        self.seeds, self.slots = list(seeds), slots
        last = len(replicas) - 1
        self.of_slot = [min(slot, last) for slot in range(slots)]  # which replica is in each
        self.parts = [range(a, b) for a, b in pairwise([0, *accumulate(rates[:-1]), slots])]
        self.cfg, self.headline, self.higher_is_better = first.cfg, first.headline, first.higher_is_better
        self.collate, self.split = first.collate, first.split
        self.embeddings = self._found_embeddings()
        self.stacked: dict[str, nn.Parameter] = {}
        for name, p in first.named_parameters():
            if p.dim() == 0:
                raise CannotStackError(f"{name} is a parameter without dimensions, a single number")
            tensors = [replicas[k].get_parameter(name).detach() for k in self.of_slot]
            joined = torch.cat(tensors) if name in self.embeddings else torch.stack(tensors)
            self.stacked[name] = nn.Parameter(joined, requires_grad=p.requires_grad)
        self.registered = nn.ParameterList(self.stacked.values())
        for name, b in first.named_buffers():
            if b.dim() == 0 and b.is_floating_point():
                raise CannotStackError(f"{name} is a buffer without dimensions, a single number")
            self.register_buffer(_key(name), torch.stack([replicas[k].get_buffer(name) for k in self.of_slot]))
        self._losses = {name: _Loss(first, player) for name, player in first.players().items()}
        self._players = self._stacked_players()
        self._tables = {name: self._tables_of_parts(name) for name in self.embeddings}
        self._generators: list[Any] = [None] * slots  # the states of the random generators
        self._draws, self._drawn = True, list[str]()  # whether a loss may draw random numbers; by what it has
        # What the task calls its tensors, those that it has twice by both names, and what we call them.
        names = {id(p): name for name, p in first.named_parameters()}
        twice = first.named_parameters(remove_duplicate=False)
        self._parameters_of_task = {name: names[id(p)] for name, p in twice}
        self._buffers_of_task = {name: _key(name) for name, _ in first.named_buffers()}
        self._forwards = self._own_forwards()
        self._link()
        self.start_epoch(0)

    def _found_embeddings(self) -> dict[str, nn.Embedding]:
        """By the names of their weights, what reads the tables of all slots; the weights come with _link."""
        found, names = dict[str, nn.Embedding](), dict[int, list[str]]()
        for name, p in self.first.named_parameters(remove_duplicate=False):
            names.setdefault(id(p), []).append(name)
        for prefix, module in self.first.named_modules():
            if not isinstance(module, nn.Embedding):
                continue
            if module.padding_idx is not None or module.max_norm is not None or module.scale_grad_by_freq:
                raise CannotStackError(f"{prefix} has padding_idx, max_norm or scale_grad_by_freq")
            if not forwards_as(nn.Embedding, module) or id(module.weight) not in names or len(module.weight) == 1:
                if any(table.embedding is module for table in self.first.tables()):
                    raise CannotStackError(f"{prefix} is a table, and its module does more than to read rows")
                continue  # vmap has rules for what it does
            if len(shared := names[id(module.weight)]) > 1:
                raise CannotStackError(f"{' and '.join(shared)} are one parameter")
            found[f"{prefix}.weight"] = nn.Embedding(1, 1, sparse=module.sparse)
        return found

    def _own_forwards(self) -> list[tuple[Any, Callable[..., Any]]]:
        """The modules that vmap has no rule for, or a slow one, and what they do instead; see vmapped."""
        found: list[tuple[Any, Callable[..., Any]]] = []
        for prefix, module in self.first.named_modules():
            if embedding := self.embeddings.get(f"{prefix}.weight"):
                found.append((module, partial(look_up, embedding, module)))
            elif isinstance(module, nn.LSTM) and forwards_as(nn.LSTM, module):
                names = {name: self._parameters_of_task[f"{prefix}.{name}"] for name, _ in module.named_parameters()}
                weights = {name: self.stacked[own] for name, own in names.items()}
                found.append((module, partial(lstm, prefix, module, weights)))
            elif isinstance(module, _BatchNorm) and forwards_as(_BatchNorm, module) and module.momentum is not None:
                found.append((module, partial(batch_norm, module)))
        return found

    def _stacked_players(self) -> dict[str, Player]:
        players, names = {}, {id(p): name for name, p in self.first.named_parameters()}
        tables = {id(self.stacked[name]) for name in self.embeddings}
        for name, player in self.first.players().items():
            group = Group([self.stacked[names[id(p)]] for p in player.module.parameters()], tables, self.parts)
            players[name] = Player(group, partial(self._stacked_loss, name), player.lr)
        return players

    def _tables_of_parts(self, name: str) -> list[nn.Embedding]:
        groups: list[Any] = [player.module for player in self._players.values()]
        weights = [leaf for group in groups for leaf in group.leaves(self.stacked[name])]
        return tables_of_parts(self.embeddings[name], weights[: len(self.parts)], self.parts)

    def _link(self) -> None:
        """Makes the tensors of the replicas, and of what reads tables, parts of the stacked ones."""
        for name, embedding in self.embeddings.items():
            embedding.weight = self.stacked[name]
            embedding.num_embeddings, embedding.embedding_dim = embedding.weight.shape
        for player in self._players.values():
            player.module.link()  # type: ignore[operator]
        for k, replica in enumerate(self.replicas):
            for name, p in replica.named_parameters():
                p.data = self._by_slot(name)[k].data
            for name, _ in replica.named_buffers():
                prefix, _, leaf = name.rpartition(".")
                setattr(replica.get_submodule(prefix), leaf, self.get_buffer(_key(name))[k])

    def _by_slot(self, name: str) -> Tensor:
        """A stacked parameter with a first axis K."""
        p = self.stacked[name]
        return p.view(self.slots, -1, *p.shape[1:]) if name in self.embeddings else p

    def _apply(self, fn: Any, recurse: bool = True) -> Any:  # torch's way of moving a module to a device
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for replica in self.replicas:
            replica._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._link()
        return self

    def train(self, mode: bool = True) -> "Stack":
        super().train(mode)
        for module, is_trained in self._modes:
            module.training = mode and is_trained
        return self

    def players(self) -> dict[str, Player]:
        return self._players

    def tables(self) -> list[Table]:
        """Of each part by itself, since optimizers step them by rows."""
        names = {id(module): f"{name}.weight" for name, module in self.first.named_modules()}
        return [Table(part, t.l2) for t in self.first.tables() for part in self._tables[names[id(t.embedding)]]]

    def examples(self, split: str) -> Any:
        return self.first.examples(split)

    def evaluates_after(self, epochs: int, of: int) -> bool:
        return self.first.evaluates_after(epochs, of)

    def with_own_rates(self, new: Any) -> Any:
        if self.first.with_own_rates(new) is not new:
            raise CannotStackError("its parameters have rates of their own (with_own_rates)")
        return new

    def evaluate(self, batch: Any) -> None:
        raise NotImplementedError("each replica evaluates itself")

    def loss(self, batch: Any) -> Loss:
        raise NotImplementedError("each player has its loss")

    def _stacked_loss(self, player: str, batch: Any) -> Loss:
        """Sums (K,) and weights (K,) of a batch whose tensors have a first axis K."""
        if self.first.training is not self.training:  # Lightning sets the flag of each module that it knows
            self.train(self.training)
        tensors = {f"task.{name}": self._by_slot(own) for name, own in self._parameters_of_task.items()}
        buffers = {f"task.{name}": self.get_buffer(own) for name, own in self._buffers_of_task.items()}

        def of_slot(tensors: dict[str, Tensor], buffers: dict[str, Tensor], slot: Tensor, batch: Any) -> Any:
            own = OwnRandomNumbers(slot, self.slots, self.own_random_numbers, self._drawn)
            after = tensors | buffers  # where functional_call leaves what the loss has made of them
            with own if self._draws else nullcontext():  # vmap itself refuses to draw random numbers
                result = functional_call(self._losses[player], after, (batch,), tie_weights=False)
            for name, buffer in buffers.items():
                if after[name] is not buffer:
                    buffer.copy_(after[name].detach())
            return result

        with self._replaced():
            total_K, weight_K = vmap(of_slot)(tensors, buffers, torch.arange(self.slots, device=self.device), batch)
        return total_K, weight_K

    @contextmanager
    def _replaced(self) -> Iterator[None]:
        """For a while, the first task's embeddings, LSTMs and batch norms are those of the stack."""
        for module, forward in self._forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in self._forwards:
                del module.forward

    def try_once(self, batch: Any) -> None:
        """Computes the losses of a batch, and forgets them; CannotStackError if that cannot be done.

        If they draw no random numbers, those of later batches must not either.
        """
        self.start_epoch(0)
        self._draws = True
        self._drawn.clear()
        try:
            with torch.no_grad(), self.unchanged():
                for player in self.players().values():
                    player.loss(batch)
        except CannotStackError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, TypeError, AttributeError) as error:
            what = str(error).strip().partition("\n")[0]
            raise CannotStackError(f"the loss cannot be that of a stack: {what}") from error
        self._draws = bool(self._drawn)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """For a while, in training mode; then mode, buffers and the first task's attributes are as they were."""
        buffers, was_training = [b.clone() for b in self.buffers()], self.training
        attributes = [(vars(module), dict(vars(module))) for module in self.first.modules()]
        self.train()
        try:
            yield
        finally:
            for live, kept in attributes:
                live.clear()
                live |= kept
            self.train(was_training)
            for buffer, value in zip(self.buffers(), buffers, strict=True):
                buffer.copy_(value)

    def start_epoch(self, epoch: int) -> None:
        """Starts the random generator of each slot as that of a run by itself."""
        for slot, replica in enumerate(self.of_slot):
            seed_all("epoch", self.seeds[replica], epoch, 0)
            self._generators[slot] = _generators(self.device)

    @contextmanager
    def own_random_numbers(self, slot: int) -> Iterator[None]:
        """For a while, random numbers come from this slot's generator."""
        cpu, gpu = self._generators[slot]
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu, self.device)
        yield
        self._generators[slot] = _generators(self.device)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Of each replica, its own."""
        return [replica.state_dict() for replica in self.replicas]

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        for replica, state in zip(self.replicas, state_dict, strict=True):
            result = replica.load_state_dict(state)
        with torch.no_grad():
            for t in [*map(self._by_slot, self.stacked), *self.buffers()]:
                t[len(self.replicas) :] = t[len(self.replicas) - 1]
        return result

    def part_of(self, k: int) -> int:
        """The number of a replica's part."""
        return next(number for number, part in enumerate(self.parts) if k in part)

    def of_replica(self, state: Any, k: int, part: range | None = None) -> Any:
        """One replica's own of a state, such as an average's; `part`: the slots that it is of, if not of all."""
        slots = part or range(self.slots)
        return sliced(state, k - slots.start, len(slots))

    def of_all(self, states: Sequence[Any], part: range | None = None) -> Any:
        """One state from those of the replicas; `part`: the slots that it is of, if not of all."""
        return joined(*(states[self.of_slot[slot]] for slot in part or range(self.slots)))


def _key(name: str) -> str:
    """A buffer's name as one of a module's own, which has no dots."""
    return name.replace(".", "/")


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
