"""Which machines there are, what a trial needs of them, and where its ranks go. Imports neither torch nor ray."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.schema.trial import TrialSpec


@dataclass(frozen=True)
class Machine:
    """One machine, or the part of it that may be used."""

    cpus: int
    gpus: int
    node_id: str = "local"
    accelerator: str = ""  # type of its GPUs, as Ray labels it (H100) or as the device calls itself (NVIDIA H100 ...)
    processor: str = ""  # type of its cores, where a host has told it

    def most_ranks(self, need: Need) -> int:
        """How many ranks it holds if nothing else runs there."""
        if not self.is_of_kind(need.accelerator):
            return 0
        by_cpus = self.cpus // need.cpus_per_rank
        if not need.gpus_per_rank:
            return by_cpus
        return min(by_cpus, int(self.gpus / need.gpus_per_rank))

    def is_of_kind(self, accelerator: str | None) -> bool:
        """Whether its GPUs are of a type that a trial asks for, by whole words: an L40S is no L4, a GH200 no H200."""
        return accelerator is None or _words(accelerator) <= _words(self.accelerator)

    def kind(self, need: Need) -> str:
        """The type of the device that a rank gets here."""
        return self.accelerator if need.gpus_per_rank else self.processor


@dataclass(frozen=True)
class Need:
    """What a trial needs. A rank that trains on a GPU takes one, or a fraction of one."""

    ranks: int
    cpus_per_rank: int
    gpus_per_rank: float
    whole_nodes: bool
    accelerator: str | None = None

    @property
    def size(self) -> tuple[float, int]:
        """Orders trials: GPUs count before cores."""
        return self.ranks * self.gpus_per_rank, self.ranks * self.cpus_per_rank


@dataclass(frozen=True)
class Seat:
    """The place where a rank runs."""

    node_id: str
    gpus: tuple[int, ...] = ()


@dataclass
class _Node:
    machine: Machine
    free_cpus: int
    free_gpus: list[float]
    tenants: dict[str, bool] = field(default_factory=dict)  # trial id to whether it has the node to itself


class Cluster:
    """Machines and their tenants.

    Args:
        machines: All machines whose cores and GPUs may be used.
    """

    def __init__(self, machines: Sequence[Machine]) -> None:
        self._nodes: dict[str, _Node] = {}
        self._known: dict[str, Machine] = {}  # all machines that there ever were, since a lost one may come back
        self._seats: dict[str, tuple[Need, list[Seat]]] = {}
        self._company: dict[str, set[str]] = {}
        self.update(machines)

    @property
    def machines(self) -> list[Machine]:
        """The machines that are there now."""
        return [node.machine for node in self._nodes.values()]

    @property
    def has_gpus(self) -> bool:
        """Whether any machine has a GPU, or had one before it was lost."""
        return any(machine.gpus for machine in self._known.values())

    def update(self, machines: Sequence[Machine]) -> None:
        """Take over a new list of machines. Tenants keep seats on machines that are gone until they release them."""
        here = {machine.node_id: machine for machine in machines}
        self._known |= here
        for node_id in self._nodes.keys() - here.keys():
            del self._nodes[node_id]
        for node_id, machine in here.items():
            self._nodes.setdefault(node_id, _Node(machine, machine.cpus, [1.0] * machine.gpus))

    def need(self, spec: TrialSpec) -> Need:
        """What a trial needs of these machines."""
        resources = spec.resources
        on_gpu = resources.device == "cuda" or (resources.device == "auto" and self.has_gpus)
        return Need(
            ranks=resources.ranks,
            cpus_per_rank=self.threads(spec),
            gpus_per_rank=resources.gpus_per_rank if on_gpu else 0,
            whole_nodes=resources.exclusive == "node",
            accelerator=resources.accelerator if on_gpu else None,
        )

    def threads(self, spec: TrialSpec) -> int:
        """Cores for one rank: what it asks for, or its share of the largest machine that was ever there.

        On GPUs it is the share that every machine with GPUs of its kind can give, so that none of them stays idle.
        """
        resources = spec.resources
        if resources.cpus_per_rank is not None:
            return resources.cpus_per_rank
        known = self._known.values()
        # Ranks may go to other machines, so that only as many share one as it holds.
        alone = len(known) == 1
        with_gpus = [machine for machine in known if machine.gpus] if resources.device != "cpu" else []
        if with_gpus:
            usable = [machine for machine in with_gpus if machine.is_of_kind(resources.accelerator)] or with_gpus
            shares = [machine.cpus // max(machine.gpus, resources.ranks if alone else 1) for machine in usable]
            return max(1, min(shares))
        largest = max(known, key=lambda machine: (machine.gpus, machine.cpus), default=Machine(1, 0)).cpus
        return max(1, largest // (resources.ranks if alone else min(resources.ranks, largest)))

    def shortage(self, spec: TrialSpec, others: Sequence[Machine] = ()) -> str | None:
        """Why a trial can never run here, even if every lost machine came back; None if it can.

        Args:
            spec: The trial.
            others: Machines that were not there yet and may come.
        """
        possible = [*self._known.values(), *others]
        if not any(machine.cpus for machine in possible) or (missing := self._missing(spec, possible)) is None:
            return None
        return f"{missing}. Lower resources.ranks or resources.cpus_per_rank"

    def missing(self, spec: TrialSpec) -> str | None:
        """Why a trial could not run on the present machines even if they were empty; None if it could."""
        return self._missing(spec, self.machines)

    def _missing(self, spec: TrialSpec, machines: Sequence[Machine]) -> str | None:
        need = self.need(spec)
        if sum(machine.most_ranks(need) for machine in machines) >= need.ranks:
            return None
        gpus = need.gpus_per_rank * need.ranks
        has = _sizes(machines)
        kind = f" of type {need.accelerator}" if need.accelerator else ""
        cpus = need.cpus_per_rank * need.ranks
        return f"{need.ranks} ranks need {cpus} CPU cores and {gpus:g} GPUs{kind}; there are {has}"

    def room(self, need: Need) -> int:
        """How many more trials that need so much could start now."""
        return sum(sum(self._room(node, need) for node in nodes) // need.ranks for nodes in self._apart(need))

    def at_once(self, need: Need) -> int:
        """How many trials that need so much could run side by side if nothing else ran; at least 1."""
        return max(1, sum(_at_once([node.machine for node in nodes], need) for nodes in self._apart(need)))

    def _apart(self, need: Need) -> list[list[_Node]]:
        """The nodes by the kind of their devices: no trial is spread over two kinds.

        If no kind could hold all ranks on empty nodes, all nodes are one set, because the trial could else never run.
        Its record then names the device of each rank, and its report says so.
        """
        kinds: dict[str, list[_Node]] = {}
        for node in self._nodes.values():
            kinds.setdefault(node.machine.kind(need), []).append(node)
        enough = [
            nodes for nodes in kinds.values() if sum(node.machine.most_ranks(need) for node in nodes) >= need.ranks
        ]
        return enough or [list(self._nodes.values())]

    def seat(self, trial_id: str, need: Need) -> list[Seat] | None:
        """Seats for all ranks of a trial at once, taken until :meth:`release`; None if there is no room now.

        All on one machine if one has room, the fullest of those; else on as few as possible, with devices of one kind
        unless no kind could ever hold them all. In the order of ranks: ranks of one machine are neighbours.
        """
        rooms = [{node.machine.node_id: self._room(node, need) for node in nodes} for nodes in self._apart(need)]
        orders = [_fewest(room, need.ranks) for room in rooms if sum(room.values()) >= need.ranks]
        if not orders:
            return None
        room = {node_id: count for each in rooms for node_id, count in each.items()}
        order = min(orders, key=lambda order: (len(order), room[order[0]]))
        seats: list[Seat] = []
        for node_id in order:
            while room[node_id] and len(seats) < need.ranks:
                room[node_id] -= 1
                seats.append(self._sit(self._nodes[node_id], need))
        for node_id in {seat.node_id for seat in seats}:
            self._nodes[node_id].tenants[trial_id] = need.whole_nodes
        self._seats[trial_id] = need, seats
        self._company[trial_id] = set()
        for other in self._neighbours(trial_id):
            self._company[trial_id].add(other)
            self._company[other].add(trial_id)
        return seats

    def release(self, trial_id: str) -> list[str]:
        """Give a trial's seats back. Returns the trials that shared a machine with it at any time."""
        need, seats = self._seats.pop(trial_id)
        for seat in seats:
            if (node := self._nodes.get(seat.node_id)) is not None and trial_id in node.tenants:
                node.free_cpus += need.cpus_per_rank
                for gpu in seat.gpus:
                    node.free_gpus[gpu] += need.gpus_per_rank
        for node in self._nodes.values():
            node.tenants.pop(trial_id, None)
        return sorted(self._company.pop(trial_id))

    def _room(self, node: _Node, need: Need) -> int:
        if any(node.tenants.values()) or (need.whole_nodes and node.tenants):
            return 0
        if not node.machine.is_of_kind(need.accelerator):
            return 0
        by_cpus = node.free_cpus // need.cpus_per_rank
        if not need.gpus_per_rank:
            return by_cpus
        by_gpus = sum(int(free / need.gpus_per_rank + 1e-9) for free in node.free_gpus)
        return min(by_cpus, by_gpus)

    def _sit(self, node: _Node, need: Need) -> Seat:
        node.free_cpus -= need.cpus_per_rank
        if not need.gpus_per_rank:
            return Seat(node.machine.node_id)
        fitting = [gpu for gpu, free in enumerate(node.free_gpus) if free >= need.gpus_per_rank - 1e-9]
        gpu = min(fitting, key=node.free_gpus.__getitem__)
        node.free_gpus[gpu] -= need.gpus_per_rank
        return Seat(node.machine.node_id, (gpu,))

    def _neighbours(self, trial_id: str) -> set[str]:
        found: set[str] = set()
        for node in self._nodes.values():
            if trial_id in node.tenants:
                found |= node.tenants.keys() - {trial_id}
        return found


@functools.cache
def _words(accelerator: str) -> frozenset[str]:
    """Of the type of a GPU. Ray calls 80G what a device calls 80GB."""
    words = re.findall(r"[a-z0-9]+", accelerator.casefold())
    return frozenset(re.sub(r"(?<=\d)gb$", "g", word) for word in words)


def _at_once(machines: Sequence[Machine], need: Need) -> int:
    """How many trials these machines hold when they are empty."""
    ranks = [machine.most_ranks(need) for machine in machines]
    if need.whole_nodes and any(ranks):
        return sum(count > 0 for count in ranks) // -(-need.ranks // max(ranks))
    return sum(ranks) // need.ranks


def _fewest(room: Mapping[str, int], ranks: int) -> list[str]:
    """The nodes that ranks take: the fullest that holds them all, else those with most room."""
    if whole := [node_id for node_id in room if room[node_id] >= ranks]:
        return [min(whole, key=room.__getitem__)]
    taken: list[str] = []
    for node_id in sorted(room, key=lambda node_id: -room[node_id]):
        if sum(room[each] for each in taken) < ranks:
            taken.append(node_id)
    return taken


def _sizes(machines: Sequence[Machine]) -> str:
    """The machines, for people."""
    if not machines:
        return "no machines"
    sizes = Counter(
        f"{machine.cpus} CPU cores and {machine.gpus} GPUs{f' ({machine.accelerator})' if machine.accelerator else ''}"
        for machine in machines
    )
    if len(machines) == 1:
        return next(iter(sizes))
    return " and ".join(f"{count} nodes of {size}" for size, count in sizes.items())
