"""The program being compiled: operators over named, typed values, and weights by their place in a file.

A graph is built by an architecture and rewritten by the passes. Each pass works on a copy and changes it through
`add`, `remove` and `replace`, which keep the order of operators stable; `check` asserts what every pass must preserve.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
import numpy.typing as npt

from aircompile.frontends.gguf import TensorInfo, WeightFile
from aircompile.operators import Kind, MatMul, Op, Slice, Value

__all__ = ["Graph", "GraphError", "ModelInfo", "Operator", "Phase", "RopeInfo", "Value"]

Phase = Literal["embed", "layer", "head"]


class GraphError(AssertionError):
    """A rewrite broke the graph: a defect of the compiler, whatever the model file holds."""


@dataclass(frozen=True)
class Operator:
    """A node: `op` applied to values. `layer` is -1 outside the layers."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: int
    phase: Phase


@dataclass(frozen=True, eq=False)
class RopeInfo:
    """Rotary positions: pair i turns by ``position[axis[i]] * inverse_frequency[i]``; sines and cosines are scaled
    by `magnitude`. All frequency scaling is folded in, except a tensor of factors (see ``passes.fold_constants``).

    `inverse_frequency` is float64 [dim / 2] in radians per position, `axis` int32 [dim / 2].
    """

    dim: int
    inverse_frequency: npt.NDArray[np.float64]
    axis: npt.NDArray[np.int32]
    n_axes: int
    magnitude: float


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """Hyperparameters that outlive the graph: what the runtime, the cache and the ledger need to know.

    Attributes
    ----------
    n_ctx_train
        Tokens that the model was trained for.
    n_ctx_max
        Tokens that its positions reach, where that is a limit; else None.
    ropes
        Tables of rotary positions, which operators refer to by index.
    """

    name: str
    architecture: str
    n_vocab: int
    n_embd: int
    n_layers: int
    n_ctx_train: int
    n_params: int
    n_ctx_max: int | None = None
    ropes: tuple[RopeInfo, ...] = ()


class Graph:
    """Operators in a DAG, with an edge from the producer of a value to each of its consumers.

    Attributes
    ----------
    values
        Every value, by name.
    weights
        The tensors that operators refer to, by name.
    constants
        Small arrays computed while compiling.
    hyper
        The model's hyperparameters.
    files
        The files that `TensorInfo.file` counts.
    outputs
        Values that the caller reads.
    """

    def __init__(
        self,
        hyper: ModelInfo,
        weights: Mapping[str, TensorInfo],
        outputs: Sequence[str],
        files: Sequence[WeightFile] = (),
    ) -> None:
        self.hyper = hyper
        self.weights = dict(weights)
        self.outputs = tuple(outputs)
        self.files = tuple(files)
        self.values: dict[str, Value] = {}
        self.constants: dict[str, npt.NDArray[np.generic]] = {}
        self._positions: dict[str, tuple[int, ...]] = {}
        self._next = 0
        self._producers: dict[str, str] = {}
        self._readers: dict[str, set[str]] = {}
        self._uses: Counter[str] = Counter()
        self._graph = nx.DiGraph()

    def copy(self) -> Graph:
        """A graph that can be rewritten without changing this one; operators and values are shared, being frozen."""
        other = Graph(self.hyper, self.weights, self.outputs, self.files)
        other.values = dict(self.values)
        other.constants = dict(self.constants)
        other._positions = dict(self._positions)
        other._next = self._next
        other._producers = dict(self._producers)
        other._readers = {value: set(names) for value, names in self._readers.items()}
        other._uses = self._uses.copy()
        other._graph = self._graph.copy()
        return other

    # reading

    def operator(self, name: str) -> Operator:
        """The operator of this name."""
        found: Operator = self._graph.nodes[name]["operator"]
        return found

    def operators(self) -> list[Operator]:
        """All operators in topological order; of those that are ready, the one that was inserted first."""
        try:
            order = list(nx.lexicographical_topological_sort(self._graph, key=self._positions.__getitem__))
        except nx.NetworkXUnfeasible:
            cycle = " -> ".join(edge[0] for edge in nx.find_cycle(self._graph))
            raise GraphError(f"the operators {cycle} depend on each other in a circle") from None
        return [self.operator(name) for name in order]

    def producer(self, value: str) -> Operator | None:
        """The operator that makes a value, or None."""
        name = self._producers.get(value)
        return None if name is None else self.operator(name)

    def consumers(self, value: str) -> list[Operator]:
        """The operators that read a value, in insertion order."""
        readers = sorted(self._readers.get(value, ()), key=self._positions.__getitem__)
        return [self.operator(name) for name in readers]

    def only_consumer(self, value: str) -> Operator | None:
        """The operator that reads a value if it is the only use: no second reader, not an output of the graph."""
        readers = self.consumers(value)
        return readers[0] if len(readers) == 1 and value not in self.outputs else None

    def ancestors(self, name: str) -> set[str]:
        """Names of all operators that run before this one in every order."""
        return set(nx.ancestors(self._graph, name))

    # rewriting

    def add(
        self,
        op: Op,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        name: str | None = None,
        layer: int = -1,
        phase: Phase = "layer",
    ) -> Operator:
        """Append an operator and declare its outputs, typed by the operator's rule.

        `name` is by default that of the first output. Inputs must exist; GraphError where they do not fit.
        """
        operator = Operator(outputs[0] if name is None else name, op, tuple(inputs), tuple(outputs), layer, phase)
        self._insert(operator, (self._next,))
        self._next += 1
        return operator

    def remove(self, name: str) -> None:
        """Remove an operator. Its outputs stay declared while something reads them, and need a new producer."""
        self.replace([name], [])

    def replace(self, names: Iterable[str], operators: Sequence[Operator]) -> None:
        """Put `operators`, producers before their readers, where the first of `names` stood.

        Their outputs are typed anew, so a value can change its type under its readers: `check` finds the misfits.
        Values and weights that nothing refers to any more are dropped.
        """
        gone = [self.operator(name) for name in set(names)]
        place = min(self._positions[operator.name] for operator in gone)
        for operator in gone:
            self._detach(operator)
        for i, operator in enumerate(operators):
            # longer than the place, so after it and before whatever follows it
            self._insert(operator, (*place, i))
        for value in {value for operator in gone for value in (*operator.inputs, *operator.outputs)}:
            if value not in self._producers and not self._readers.get(value):
                del self.values[value]
        for tensor in {tensor for operator in gone for tensor in operator.op.tensors()}:
            if not self._uses[tensor]:
                del self.weights[tensor]

    def _detach(self, operator: Operator) -> None:
        for value in operator.outputs:
            del self._producers[value]
        for value in operator.inputs:
            self._readers[value].discard(operator.name)
        self._uses.subtract(operator.op.tensors())
        del self._positions[operator.name]
        self._graph.remove_node(operator.name)

    def _insert(self, operator: Operator, position: tuple[int, ...]) -> None:
        name = operator.name
        if name in self._positions:
            raise GraphError(f"two operators named {name}")
        for value, kind in zip(operator.outputs, self._infer(operator), strict=True):
            if value in self._producers:
                raise GraphError(f"{name} and {self._producers[value]} both produce {value}")
            self.values[value] = Value(value, *kind)
            self._producers[value] = name
        self._positions[name] = position
        self._uses.update(operator.op.tensors())
        self._graph.add_node(name, operator=operator)
        for value in operator.inputs:
            self._readers.setdefault(value, set()).add(name)
            if value in self._producers:
                self._connect(self._producers[value], name, value)
        for value in operator.outputs:
            for reader in self._readers.get(value, ()):
                self._connect(name, reader, value)

    def _connect(self, producer: str, consumer: str, value: str) -> None:
        if not self._graph.has_edge(producer, consumer):
            self._graph.add_edge(producer, consumer, values=frozenset())
        edge = self._graph.edges[producer, consumer]
        edge["values"] = edge["values"] | {value}

    def _infer(self, operator: Operator) -> tuple[Kind, ...]:
        missing = [name for name in operator.inputs if name not in self.values]
        missing += [name for name in operator.op.tensors() if name not in self.weights]
        if missing:
            raise GraphError(f"{operator.name} refers to {missing[0]}, which does not exist")
        try:
            kinds = operator.op.infer([self.values[name] for name in operator.inputs], self.weights)
        except ValueError as error:
            raise GraphError(f"{operator.name}: {type(operator.op).__name__}: {error}") from None
        if len(kinds) != len(operator.outputs):
            raise GraphError(f"{operator.name} has {len(operator.outputs)} outputs instead of {len(kinds)}")
        return kinds

    # checking and showing

    def check(self) -> None:
        """Assert the invariants; GraphError names the first that is broken.

        Every value has one producer and, unless it is an output, a consumer; there is no cycle; types fit the
        operators; every weight is used; what a product accumulates onto is not read after it.
        """
        operators = self.operators()
        for operator in operators:
            for value, kind in zip(operator.outputs, self._infer(operator), strict=True):
                if self.values.get(value) != Value(value, *kind):
                    raise GraphError(f"{value} is {self.values.get(value)}, but {operator.name} makes {kind}")
            if isinstance(operator.op, MatMul) and operator.op.accumulate:
                self._check_in_place(operator)
        for value in self.values:
            if value not in self._producers:
                raise GraphError(f"nothing produces {value}")
            if value not in self.outputs and not self.consumers(value):
                raise GraphError(f"nothing reads {value}")
        for value in self.outputs:
            if value not in self.values:
                raise GraphError(f"nothing produces the output {value}")
        unused = self.weights.keys() - {name for operator in operators for name in operator.op.tensors()}
        if unused:
            raise GraphError(f"no operator refers to the weight {min(unused)}")

    def _check_in_place(self, operator: Operator) -> None:
        value = operator.inputs[1]
        before = self.ancestors(operator.name) | {operator.name}
        late = [reader.name for reader in self.consumers(value) if reader.name not in before]
        views = [self.producer(value), *self.consumers(value)]
        late += [view.name for view in views if view is not None and isinstance(view.op, Slice)]
        if late or value in self.outputs or value == operator.inputs[0]:
            raise GraphError(f"{operator.name} accumulates onto {value}, which is read elsewhere {late}")

    def dump(self) -> str:
        """The program as text, an operator a line: place, name, what it computes, inputs -> outputs."""
        rows: list[tuple[str, str, str, str]] = []
        for operator in self.operators():
            place = f"layer {operator.layer}" if operator.layer >= 0 else operator.phase
            outputs = ", ".join(_typed(self.values[name]) for name in operator.outputs)
            arrow = f"{', '.join(operator.inputs)} -> {outputs}" if operator.inputs else f"-> {outputs}"
            rows.append((place, operator.name, self._call(operator.op), arrow))
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row[:3], widths, strict=True)), row[3]]) for row in rows]
        return "\n".join(lines) + "\n"

    def _call(self, op: Op) -> str:
        """An operator with those of its attributes that differ from their defaults; weights show their formats."""

        def show(value: object) -> str:
            if isinstance(value, tuple):
                return "+".join(show(item) for item in value)
            if isinstance(value, str) and value in self.weights:
                return f"{value}:{self.weights[value].format}"
            return f"{value:.7g}" if isinstance(value, float) else str(value)

        shown = []
        for field in sorted(dataclasses.fields(op), key=lambda field: bool(field.kw_only)):
            value = getattr(op, field.name)
            if value != field.default and not (isinstance(value, tuple) and all(item is None for item in value)):
                shown.append(f"{field.name}={show(value)}")
        return f"{type(op).__name__}({', '.join(shown)})"


def _typed(value: Value) -> str:
    return f"{value.name} {value.dtype}{value.shape}"
