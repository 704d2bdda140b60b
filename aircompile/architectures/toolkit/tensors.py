"""The tensors of a model file, taken one by one: of the expected shape, and none overlooked."""

from __future__ import annotations

import dataclasses
import math
import re

from aircompile.frontends.gguf import GGUFModel, TensorInfo
from airrun.errors import ModelFileError, UnsupportedError


class TensorTable:
    """Tensors by name; what is taken becomes `taken`, and `finish` refuses the rest."""

    def __init__(self, model: GGUFModel) -> None:
        self._model = model
        self.taken: dict[str, TensorInfo] = {}
        self._unused: list[re.Pattern[str]] = []

    def has(self, name: str) -> bool:
        return name in self._model.tensors

    def matrix(self, name: str, n_rows: int, n_cols: int) -> str:
        """Take a matrix in any format; returns its name."""
        self._take(name, (n_rows, n_cols))
        return name

    def stack(self, name: str, count: int, n_rows: int, n_cols: int) -> list[str]:
        """Take matrices that are stored as one tensor; returns a name for each."""
        whole = self._take(name, (count, n_rows, n_cols))
        size = whole.nbytes // count
        names = [f"{name}[{i}]" for i in range(count)]
        for i, part in enumerate(names):
            self.taken[part] = dataclasses.replace(
                whole, name=part, offset=whole.offset + i * size, nbytes=size, shape=(n_rows, n_cols)
            )
        return names

    def row(self, name: str, n_cols: int) -> str:
        """Take a matrix of one row, which may be stored as a vector; returns its name."""
        if self.has(name) and self.shape(name) == (n_cols,):
            self.taken[name] = dataclasses.replace(self._take(name, (n_cols,)), shape=(1, n_cols))
            return name
        return self.matrix(name, 1, n_cols)

    def matrices(self, name: str, n: int, n_rows: int, n_cols: int) -> str:
        """Take `n` matrices in any format, stored as one tensor; returns its name."""
        self._take(name, (n, n_rows, n_cols))
        return name

    def vectors(self, name: str, n: int, n_cols: int) -> str:
        """Take `n` vectors, stored as one tensor of F32; returns its name."""
        self._take(name, (n, n_cols))
        return self._float(name)

    def vector(self, name: str, n: int) -> str:
        """Take a vector, which kernels read as it stands: F32."""
        self._take(name, (n,))
        return self._float(name)

    def _float(self, name: str) -> str:
        tensor = self.taken[name]
        if tensor.format != "F32":
            raise UnsupportedError(
                f"{self._path(tensor)}: vector {name!r} is in {tensor.format}, only F32 is supported"
            )
        return name

    def flat(self, name: str, *shape: int) -> str:
        """Take a tensor of F32 that kernels read row after row, as a vector."""
        self.taken[name] = dataclasses.replace(self._take(name, shape), shape=(math.prod(shape),))
        return self._float(name)

    def parts(self, name: str, n: int, *shape: int) -> tuple[str, ...]:
        """Take a tensor as `n` equal parts of its rows, each of this shape and known as 'name[i]'."""
        whole = self._model.tensors.get(name)
        if whole is None or math.prod(whole.shape) != n * math.prod(shape) or whole.shape[-1] != shape[-1]:
            self._take(name, (n, *shape))  # which says what is wrong
        assert whole is not None
        self.taken[name] = whole
        nbytes = whole.nbytes // n
        names = tuple(f"{name}[{i}]" for i in range(n))
        for i, part in enumerate(names):
            place = whole.offset + i * nbytes
            self.taken[part] = dataclasses.replace(whole, name=part, offset=place, nbytes=nbytes, shape=shape)
        return names

    def group_vector(self, name: str, groups: int, n: int) -> str:
        """Take a vector of `n` for every group of columns: one for all, or a row for each."""
        rows = self.has(name) and self.shape(name) == (groups, n)
        return self.flat(name, groups, n) if rows else self.vector(name, n)

    def optional_vector(self, name: str, n: int) -> str | None:
        """Take a vector if the file has it."""
        return self.vector(name, n) if self.has(name) else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that is there."""
        return self._model.tensors[name].shape

    def ignore(self, pattern: str) -> None:
        """Accept tensors whose whole name matches, and which do not change what is computed."""
        self._unused.append(re.compile(pattern))

    def finish(self) -> None:
        """Refuse tensors that were neither taken nor are ignored."""
        for name, tensor in self._model.tensors.items():
            if name not in self.taken and not any(pattern.fullmatch(name) for pattern in self._unused):
                raise ModelFileError(f"{self._path(tensor)}: tensor {name!r} is not understood for this architecture")

    def _take(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensor = self._model.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self._model.files[0].path}: tensor {name!r} is missing")
        if tensor.shape != shape:
            raise ModelFileError(f"{self._path(tensor)}: tensor {name!r} has shape {tensor.shape}, expected {shape}")
        self.taken[name] = tensor
        return tensor

    def _path(self, tensor: TensorInfo) -> str:
        return str(self._model.files[tensor.file].path)
