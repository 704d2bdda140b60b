"""What names a kernel, on whatever device it runs."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Spec:
    """Base of kernel descriptions: equal ones are one kernel.

    `op`, `fmt` and `shape` are what people read; the symbol also digests every other field.
    """

    @property
    def op(self) -> str:
        return type(self).__name__.removesuffix("Spec").lower()

    @property
    def fmt(self) -> str:
        return ""

    @property
    def shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def symbol(self) -> str:
        digest = hashlib.sha256(repr((self.op, astuple(self))).encode()).hexdigest()[:8]
        parts = [self.op, self.fmt.lower(), "x".join(map(str, self.shape)), digest]
        return "_".join(part for part in parts if part)
