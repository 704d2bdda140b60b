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
    """Finish the rope table, and put it into the constants `rope.inverse_frequency` and `rope.axis`.

    Raises ModelFileError where the factors cannot be read or are no positive numbers.
    """
    graph = graph.copy()
    rope = graph.hyper.rope
    operators = [(operator, operator.op) for operator in graph.operators() if isinstance(operator.op, Rope)]
    names = {op.factors for _, op in operators}
    if len(names) > 1:
        raise GraphError(f"rotary positions with different factors: {sorted(map(str, names))}")
    for name in names - {None}:
        assert name is not None
        tensor = graph.weights[name]
        factors = _read_factors(tensor, graph.files[tensor.file])
        rope = dataclasses.replace(rope, inverse_frequency=rope.inverse_frequency / factors)
        graph.hyper = dataclasses.replace(graph.hyper, rope=rope)
        for operator, op in operators:
            folded = dataclasses.replace(operator, op=dataclasses.replace(op, factors=None))
            graph.replace([operator.name], [folded])
    graph.constants["rope.inverse_frequency"] = rope.inverse_frequency
    graph.constants["rope.axis"] = rope.axis
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
