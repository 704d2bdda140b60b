"""Compiling kernels to objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

from airkernels.cpu.isa import VectorIsa
from airkernels.cpu.program import ANCHORED

_PIPELINE = "aircompile-cpu"


def _pipeline() -> tuple[Any, Any, Any]:
    """TVM's lowering without the packed-call wrapper: functions keep their C signature and their locals
    stay on the stack, so that a library of them needs nothing of TVM at run time."""

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]  # TVM has no annotations
    def lower(mod: tvm.IRModule, _context: Any) -> tvm.IRModule:
        t = tirx.transform
        return tvm.ir.transform.Sequential(
            [
                t.FlattenBuffer(),
                t.NarrowDataType(32),
                t.VectorizeLoop(True),
                t.UnrollLoop(),
                t.StmtSimplify(),
                t.AnnotateEntryFunc(),
                t.SplitHostDevice(),
                t.MakePackedAPI(),
            ]
        )(mod)

    def finish() -> Any:
        return tvm.ir.transform.Sequential([tirx.transform.LowerIntrin()])

    return lower, finish, finish


compilation_pipeline.register_tir_pipeline(_PIPELINE, _pipeline)


def compile_kernels(kernels: Mapping[str, tirx.PrimFunc], isa: VectorIsa) -> Any:
    """Compile kernels into one TVM library for an instruction set."""
    target: dict[str, Any] = {"kind": "llvm", "mcpu": isa.cpu, "mtriple": f"{isa.arch}-linux-gnu"}
    if isa.attributes:
        target["mattr"] = list(isa.attributes)
    kernels = dict(kernels)
    if isa.anchors:
        name, first = next(iter(kernels.items()))
        kernels[name] = first.with_body(tirx.AttrStmt(0, "pragma_import_llvm", ANCHORED, first.body))
    return tirx.build(tvm.IRModule(kernels), target=tvm.target.Target(target), pipeline=_PIPELINE)
