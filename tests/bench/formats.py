"""Every block format beside llama.cpp's best kernel for it: a product with one token, and with 512.

    python tests/bench/formats.py --peer-lib FOLDER [-t 1,2] [-f Q4_0,IQ2_XS] [--size 4096]

FOLDER holds llama.cpp's libggml-base.so and libggml-cpu.so (that of llama-cpp-python is `llama_cpp/lib`). Weights
are random blocks, several matrices one after the other so that they exceed what caches hold, in the layout each side
likes best (here panels; there a repacking buffer, where it supports the product). Both sides round the activations
in the measured time. They take turns round by round; the best round of each counts, and results are compared.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from block_samples import ordinary_blocks

from aircompile.codegen import compile_library
from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.isa import ISAS, PANEL, VectorIsa
from airkernels.cpu.matmul_int import MatmulShape
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat
from airrun.machine.system import detect
from airrun.plan.blocks import BLOCKS
from airrun.replay.memory import Region
from airrun.replay.native import Call, Library, Team, pack_calls
from airschedules.specs import MatmulSpec, PackSpec, QuantizeSpec

N_TOKENS = 512
WEIGHTS_NBYTES = 320 << 20
"""Bytes of the matrices that a round of single tokens reads."""

PAUSE = 0.02
"""Seconds between rounds: threads of the side that ran last may still be spinning."""

Floats = npt.NDArray[np.float32]


class Ours:
    """Products of this project, as a plan would run them."""

    def __init__(self, name: str, raw: npt.NDArray[np.uint8], x: Floats, isa: VectorIsa, n_threads: int) -> None:
        n_rows, n = len(raw), x.shape[1]
        fmt = FORMATS[name]
        quantized = isinstance(fmt, BlockFormat)
        shape = MatmulShape(n_rows, n, n_rows)
        products = {phase: MatmulSpec(name, shape, n, quantized, phase) for phase in ("decode", "prefill")}
        pack, quantize = PackSpec(name, n), QuantizeSpec(n, n, 1)
        specs = [*products.values(), pack, *([quantize] if quantized else [])]
        compiled = compile_library(specs, isa, lambda *_: None)
        library = Library(compiled.image, "bench")
        self.team = Team(library, n_threads)
        self.n_rows, self.n_tokens = n_rows, len(x)
        n_panels = -(-n_rows // PANEL)
        nbytes = n_panels * PanelLayout(fmt, n).nbytes
        self.n_matrices = max(1, WEIGHTS_NBYTES // nbytes)
        self._regions = [Region(nbytes * self.n_matrices, huge=True), Region(raw.nbytes), Region(x.nbytes)]
        weights, source, activations = self._regions
        source.bytes[: raw.nbytes] = raw.reshape(-1)
        activations.bytes[: x.nbytes] = x.reshape(-1).view(np.uint8)
        rounded = Region(len(x) * QuantizedRow(n, 1).nbytes)
        self._out = Region(4 * len(x) * n_rows)
        scratch = Region(n_threads * compiled.scratch_nbytes)
        self._regions += [rounded, self._out, scratch]

        def matrix(i: int) -> int:
            return weights.address + i * nbytes

        def product(phase: str, n_tokens: int, i: int) -> list[Call]:
            source = rounded.address if quantized else activations.address
            pointers = [matrix(i), source, self._out.address, 0, 0, 0, 0, scratch.address]
            call = Call(library.address(products[phase].symbol), pointers, n_tokens, n_panels, True)
            if not quantized:
                return [call]
            rounding = [activations.address, 0, rounded.address]
            return [Call(library.address(quantize.symbol), rounding, n_tokens, n_tokens, True), call]

        self._run(
            [
                Call(library.address(pack.symbol), [source.address, matrix(i)], n_rows, n_panels, True)
                for i in range(self.n_matrices)
            ]
        )()
        self.single = self._run([call for i in range(self.n_matrices) for call in product("decode", 1, i)])
        self.many = self._run(product("prefill", len(x), 0))

    def _run(self, calls: list[Call]) -> Callable[[], None]:
        packed = pack_calls(calls)
        self.team.adopt(packed)
        return lambda: self.team.run(packed.address, len(calls))

    def results(self, n_tokens: int) -> Floats:
        return self._out.bytes[: 4 * n_tokens * self.n_rows].view(np.float32).reshape(n_tokens, self.n_rows).copy()

    def close(self) -> None:
        self.team.close()


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class Ggml:
    """The functions of llama.cpp's libraries used here; all handles are plain addresses."""

    def __init__(self, folder: Path) -> None:
        self._libraries = [
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in ("libggml-base.so", "libggml-cpu.so")
        ]
        self.call("ggml_log_set", _QUIET, None, returns=None)
        self.call("ggml_init", _InitParams(1 << 20, None, True))  # fills the tables of half floats
        self.device = self.call("ggml_backend_reg_dev_get", self.call("ggml_backend_cpu_reg"), ctypes.c_size_t(0))
        get = self.call("ggml_backend_reg_get_proc_address", self.call("ggml_backend_cpu_reg"), _EXTRA_BUFFERS)
        found = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(get)(self.device)
        self.extra_buffers: list[int] = []
        while found and (at := found[len(self.extra_buffers)]):
            self.extra_buffers.append(at)

    def call(self, name: str, *args: Any, returns: Any = ctypes.c_void_p) -> Any:
        function = next(getattr(library, name) for library in self._libraries if hasattr(library, name))
        function.restype = returns
        return function(*[ctypes.c_void_p(a) if isinstance(a, int) else a for a in args])


_EXTRA_BUFFERS = b"ggml_backend_dev_get_extra_bufts"
_QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


class Theirs:
    """The same products by ggml's CPU backend."""

    def __init__(
        self, ggml: Ggml, name: str, raw: npt.NDArray[np.uint8], x: Floats, n_matrices: int, n_threads: int
    ) -> None:
        self.ggml, self.n_rows = ggml, len(raw)
        n = x.shape[1]
        self.backend = ggml.call("ggml_backend_cpu_init")
        ggml.call("ggml_backend_cpu_set_n_threads", self.backend, ctypes.c_int(n_threads), returns=None)
        self._free: list[tuple[str, int]] = [("ggml_backend_free", self.backend)]
        self._products: dict[int, list[int]] = {}
        for buffers in (*ggml.extra_buffers, ggml.call("ggml_backend_cpu_buffer_type")):
            weights = self._context()
            matrices = [self._tensor(weights, BLOCKS[name].id, n, self.n_rows) for _ in range(n_matrices)]
            held = self._allocate(weights, buffers)
            context = self._context()
            inputs = {t: self._tensor(context, BLOCKS["F32"].id, n, t) for t in (1, len(x))}
            for t, handle in inputs.items():
                factors = matrices if t == 1 else matrices[:1]
                self._products[t] = [ggml.call("ggml_mul_mat", context, m, handle) for m in factors]
            if all(self._supported(products[0]) for products in self._products.values()):
                break
            ggml.call("ggml_backend_buffer_free", held, returns=None)
        self.layout: str = ggml.call("ggml_backend_buft_name", buffers, returns=ctypes.c_char_p).decode()
        self._free.append(("ggml_backend_buffer_free", held))
        self._free.append(
            ("ggml_backend_buffer_free", self._allocate(context, ggml.call("ggml_backend_cpu_buffer_type")))
        )
        for m in matrices:
            self._set(m, raw)
        for t, handle in inputs.items():
            self._set(handle, x[:t])
        self.single, self.many = self._compute(context, 1), self._compute(context, len(x))

    def _context(self) -> int:
        context: int = self.ggml.call("ggml_init", _InitParams(16 << 20, None, True))
        self._free.append(("ggml_free", context))
        return context

    def _tensor(self, context: int, kind: int, *shape: int) -> int:
        sizes = [ctypes.c_int64(s) for s in shape]
        handle: int = self.ggml.call("ggml_new_tensor_2d", context, ctypes.c_int(kind), *sizes)
        return handle

    def _allocate(self, context: int, buffers: int) -> int:
        held: int = self.ggml.call("ggml_backend_alloc_ctx_tensors_from_buft", context, buffers)
        return held

    def _supported(self, product: int) -> bool:
        device = self.ggml.device
        return bool(self.ggml.call("ggml_backend_dev_supports_op", device, product, returns=ctypes.c_bool))

    def _set(self, handle: int, data: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(data)
        sizes = (ctypes.c_size_t(0), ctypes.c_size_t(data.nbytes))
        self.ggml.call("ggml_backend_tensor_set", handle, data.ctypes.data, *sizes, returns=None)

    def _compute(self, context: int, n_tokens: int) -> Callable[[], None]:
        graph = self.ggml.call("ggml_new_graph", context)
        for product in self._products[n_tokens]:
            self.ggml.call("ggml_build_forward_expand", graph, product, returns=None)

        def run() -> None:
            if self.ggml.call("ggml_backend_graph_compute", self.backend, graph, returns=ctypes.c_int):
                raise RuntimeError("ggml could not compute the products")

        return run

    def results(self, n_tokens: int) -> Floats:
        out = np.empty((n_tokens, self.n_rows), np.float32)
        sizes = (ctypes.c_size_t(0), ctypes.c_size_t(out.nbytes))
        self.ggml.call("ggml_backend_tensor_get", self._products[n_tokens][0], out.ctypes.data, *sizes, returns=None)
        return out

    def close(self) -> None:
        for function, handle in reversed(self._free):
            self.ggml.call(function, handle, returns=None)


@dataclass(frozen=True)
class Row:
    """A line of the table: rates of one product, ours and theirs."""

    name: str
    threads: int
    job: str
    ours: float
    theirs: float
    unit: str
    layout: str

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def measure(ggml: Ggml, name: str, isa: VectorIsa, n_threads: int, size: int, n_rounds: int) -> list[Row]:
    rng = np.random.default_rng(0)
    block = BLOCKS[name]
    if isinstance(FORMATS[name], BlockFormat):
        raw = ordinary_blocks(rng, name, size * size // block.block).reshape(size, -1)
    else:
        values = (rng.standard_normal((size, size)) * 0.02).astype(np.float32)
        raw = {"F32": values, "F16": values.astype(np.float16), "BF16": values.view(np.uint16)[:, 1::2]}[name]
        raw = np.ascontiguousarray(raw).view(np.uint8).reshape(size, -1)
    x = rng.standard_normal((N_TOKENS, size)).astype(np.float32)
    ours = Ours(name, raw, x, isa, n_threads)
    theirs = Theirs(ggml, name, raw, x, ours.n_matrices, n_threads)
    nbytes, multiplications = raw.nbytes * ours.n_matrices, size * size * N_TOKENS
    rows = []
    for job, n_tokens, work, unit in (
        ("1 token", 1, nbytes, "GB/s"),
        ("512 tokens", N_TOKENS, 2 * multiplications, "GOP/s"),
    ):
        runs = (ours.single, theirs.single) if n_tokens == 1 else (ours.many, theirs.many)
        best = [math.inf, math.inf]
        for round_ in range(1 + n_rounds):
            for side, run in enumerate(runs):
                time.sleep(PAUSE)
                started = time.perf_counter()
                run()
                if round_:  # the first warms up
                    best[side] = min(best[side], time.perf_counter() - started)
        agree(name, ours.results(n_tokens), theirs.results(n_tokens))
        rates = [work / seconds / 1e9 for seconds in best]
        rows.append(Row(name, n_threads, job, rates[0], rates[1], unit, theirs.layout))
    theirs.close()
    ours.close()
    return rows


def agree(name: str, ours: Floats, theirs: Floats) -> None:
    """Both multiplied the same numbers: what roundings of activations differ is a percent or so."""
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error < 0.05:
        raise RuntimeError(f"{name}: results differ by {error:.1%} of the largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-lib", type=Path, required=True, help="folder of libggml-cpu.so")
    parser.add_argument("-t", "--threads", default="1,2", help="thread counts, separated by commas")
    parser.add_argument("-f", "--formats", default=",".join(FORMATS), help="formats, separated by commas")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    parser.add_argument("--isa", help="instruction set; by default the best of this machine")
    parser.add_argument("--json", action="store_true", help="a JSON line per row")
    args = parser.parse_args()
    cpu = detect().cpu
    isa = replace(ISAS[args.isa or cpu.isa[0]], prefetch=cpu.prefetch)
    ggml = Ggml(args.peer_lib)
    rows: list[Row] = []
    for n_threads in map(int, args.threads.split(",")):
        for name in args.formats.split(","):
            for row in measure(ggml, name, isa, n_threads, args.size, args.rounds):
                rows.append(row)
                if args.json:
                    print(json.dumps({**row.__dict__, "ratio": round(row.ratio, 3)}), flush=True)
                else:
                    print(
                        f"{row.name:8} {row.threads} threads  {row.job:10} {row.ours:7.1f} {row.unit:5}   "
                        f"llama.cpp {row.theirs:7.1f} ({row.layout})   ratio {row.ratio:.2f}",
                        flush=True,
                    )
    for n_threads in sorted({row.threads for row in rows}):
        for job in dict.fromkeys(row.job for row in rows):
            ratios = [row.ratio for row in rows if (row.threads, row.job) == (n_threads, job)]
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"{n_threads} threads, {job}: geometric mean {mean:.2f}, least {min(ratios):.2f}", file=sys.stderr)


if __name__ == "__main__":
    main()
