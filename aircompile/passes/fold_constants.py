"""Compute what does not depend on the input: the rotary frequencies, divided by the factors the file may carry.

This is the only place where weights are read at compile time: a tensor of half a head, whose size was checked.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from aircompile.frontends.gguf import TensorInfo, WeightFile
from aircompile.graph import Graph, GraphError
from aircompile.operators import Rope
from aircompile.passes.options import PassOptions
from airrun.errors import ModelFileError


def fold_constants(graph: Graph, options: PassOptions) -> Graph:
    """Finish the rope tables, and put them end to end into the constants `rope.inverse_frequency`, `rope.axis` and
    `rope.magnitude`, an entry per pair.

    Raises ModelFileError where factors cannot be read or are no positive numbers.
    """
    graph = graph.copy()
    ropes = list(graph.hyper.ropes)
    rotations = [(operator, operator.op) for operator in graph.operators() if isinstance(operator.op, Rope)]
    for i, rope in enumerate(ropes):
        names = {op.factors for _, op in rotations if op.table == i}
        if len(names) > 1:
            raise GraphError(f"rotary positions with different factors: {sorted(map(str, names))}")
        for name in names - {None}:
            assert name is not None
            tensor = graph.weights[name]
            factors = _read_factors(tensor, graph.files[tensor.file])
            ropes[i] = dataclasses.replace(rope, inverse_frequency=rope.inverse_frequency / factors)
    for operator, op in rotations:
        if op.factors is not None:
            folded = dataclasses.replace(operator, op=dataclasses.replace(op, factors=None))
            graph.replace([operator.name], [folded])
    graph.hyper = dataclasses.replace(graph.hyper, ropes=tuple(ropes))
    none = np.zeros(0)
    graph.constants["rope.inverse_frequency"] = np.concatenate([none, *(rope.inverse_frequency for rope in ropes)])
    graph.constants["rope.axis"] = np.concatenate([none.astype(np.int32), *(rope.axis for rope in ropes)])
    graph.constants["rope.magnitude"] = np.concatenate(
        [none, *(np.full(rope.dim // 2, rope.magnitude) for rope in ropes)]
    )
    return graph


def _read_factors(tensor: TensorInfo, file: WeightFile) -> npt.NDArray[np.float64]:
    try:
        with open(file.path, "rb") as stream:
            stream.seek(tensor.offset)
            data = stream.read(tensor.nbytes)
    except OSError as error:
        raise ModelFileError(f"{file.path}: cannot be read: {error.strerror}") from None
    if len(data) != tensor.nbytes:
        raise ModelFileError(
            f"{file.path}: at offset {tensor.offset}: tensor {tensor.name!r} ends after {len(data)} of "
            f"{tensor.nbytes} bytes (truncated?)"
        )
    factors = np.frombuffer(data, "<f4").astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ModelFileError(
            f"{file.path}: at offset {tensor.offset}: tensor {tensor.name!r} holds factors that are not positive"
        )
    return factors
