"""Instructions per weight byte on ARM, ours beside llama.cpp's, counted by running both on an emulated processor.

    python tests/bench/arm_instructions.py --peer-source LLAMA.CPP [--formats Q4_0,Q8_0] [--tokens 1,512]

Both are compiled here (`ziglang`) and run under QEMU (fetched from Debian), which logs every instruction. What is
counted is the difference between a matrix and one of half the rows, so nothing but the products. Activations are
rounded already and have no outliers; llama.cpp's weights are repacked already, and its kernels are those that it picks
for the processor. Instructions are no time: processors do several at once, and wait for memory.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from airkernels.cpu.activations import QuantizedRow
from airkernels.cpu.build import compile_kernels
from airkernels.cpu.isa import ISAS, PANEL
from airkernels.cpu.matmul_int import MatmulShape, matmul_int, scratch_nbytes
from airkernels.cpu.panels import PanelLayout
from airkernels.formats import FORMATS, BlockFormat
from airschedules.records import MatmulTask
from airschedules.rules import schedule_matmul

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from arm_machine import PROCESSORS, emulator_command

COLUMNS, ROWS = 2048, 64
ATTRIBUTES = {"armv8-a+dotprod": "dotprod", "armv8-a+i8mm": "dotprod+i8mm"}
PEER_KERNELS = {
    ("Q4_0", "armv8-a+dotprod"): "q4_0_4x4_q8_0",
    ("Q4_0", "armv8-a+i8mm"): "q4_0_4x8_q8_0",
    ("Q8_0", "armv8-a+dotprod"): "q8_0_4x4_q8_0",
    ("Q8_0", "armv8-a+i8mm"): "q8_0_4x8_q8_0",
    ("Q4_K", "armv8-a+dotprod"): "q4_K_8x4_q8_K",
    ("Q4_K", "armv8-a+i8mm"): "q4_K_8x8_q8_K",
}
"""What llama.cpp's `ggml_repack_get_optimal_repack_type` chooses."""

OUR_MAIN = """
#include <stdint.h>
#include <stdlib.h>
typedef int32_t kernel(void *, void *, void *, void *, void *, void *, void *, void *, int32_t, int32_t, int32_t,
                       int32_t);
extern kernel product;
int main(int argc, char **argv) {
    int panels = atoi(argv[1]);
    char *weights = aligned_alloc(64, PANEL_NBYTES * 8), *x = aligned_alloc(64, X_NBYTES);
    char *scratch = aligned_alloc(64, SCRATCH);
    float *out = malloc(4 * 16 * 8 * TOKENS);
    for (int i = 0; i < PANEL_NBYTES * 8; i++) weights[i] = 1;
    for (int i = 0; i < X_NBYTES; i++) x[i] = 0;
    product(weights, x, out, 0, 0, 0, 0, scratch, TOKENS, 0, panels, 0);
    return 0;
}
"""
PEER_MAIN = """
#include <stdlib.h>
#include <string.h>
extern "C" {
void ggml_gemv_KERNEL(int, float *, size_t, const void *, const void *, int, int);
void ggml_gemm_KERNEL(int, float *, size_t, const void *, const void *, int, int);
}
int main(int argc, char **argv) {
    int rows = 16 * atoi(argv[1]);
    char *weights = (char *)malloc(2 * 128 * COLUMNS), *x = (char *)malloc(2 * TOKENS * COLUMNS);
    float *out = (float *)malloc(4 * 128 * TOKENS);
    memset(weights, 1, 2 * 128 * COLUMNS);
    memset(x, 0, 2 * TOKENS * COLUMNS);
    if (TOKENS == 1) ggml_gemv_KERNEL(COLUMNS, out, 128, weights, x, 1, rows);
    else ggml_gemm_KERNEL(COLUMNS, out, 128, weights, x, TOKENS, rows);
    return 0;
}
"""


def zig(*arguments: str) -> None:
    command = [sys.executable, "-m", "ziglang", *arguments[:1], "-target", "aarch64-linux-musl", *arguments[1:]]
    subprocess.run(command, check=True)


def defines(**values: object) -> list[str]:
    return [f"-D{name}={value}" for name, value in values.items()]


def build_ours(fmt: BlockFormat, level: str, tokens: int, folder: Path) -> Path:
    isa = ISAS[level]
    shape = MatmulShape(8 * PANEL, COLUMNS, 8 * PANEL, digits=2)
    task = MatmulTask(fmt.name, COLUMNS, "decode" if tokens == 1 else "prefill", 2)
    kernel = matmul_int("product", isa, fmt, shape, schedule_matmul(task, isa).schedule)
    compile_kernels({"product": kernel}, isa).write_to_file(str(folder / "product.o"))
    (folder / "ours.c").write_text(OUR_MAIN)
    sizes = defines(
        PANEL_NBYTES=PanelLayout(fmt, COLUMNS).nbytes,
        X_NBYTES=tokens * QuantizedRow(COLUMNS, 2).nbytes,
        SCRATCH=scratch_nbytes(isa, fmt, COLUMNS),
        TOKENS=tokens,
    )
    out = folder / "ours"
    zig("cc", "-O1", "-static", *sizes, str(folder / "ours.c"), str(folder / "product.o"), "-o", str(out))
    return out


def build_peer(source: Path, kernel: str, level: str, tokens: int, folder: Path) -> Path:
    cpu = ["-O3", f"-mcpu=generic+v8_2a+{ATTRIBUTES[level]}", "-DNDEBUG"]
    ggml = source / "ggml" / "src"
    repack = folder / "repack.o"
    if not repack.exists():
        headers = [f"-I{path}" for path in (ggml, ggml / "ggml-cpu", ggml.parent / "include")]
        zig("c++", *cpu, *headers, "-c", str(ggml / "ggml-cpu/arch/arm/repack.cpp"), "-o", str(repack))
    (folder / "peer.cpp").write_text(PEER_MAIN.replace("KERNEL", kernel))
    names = defines(COLUMNS=COLUMNS, TOKENS=tokens)
    # generic versions of its kernels, which these do not call
    missing = "".join(
        f'extern "C" void {name}() {{}}\n'
        for name in subprocess.run(["nm", "-u", str(repack)], capture_output=True, text=True, check=True).stdout.split()
        if name.endswith("_generic")
    )
    (folder / "generic.cpp").write_text(missing)
    sources = [str(folder / name) for name in ("peer.cpp", "generic.cpp", "repack.o")]
    out = folder / "peer"
    zig("c++", "-O1", "-static", *names, *sources, "-o", str(out))
    return out


def executed(program: Path, level: str, panels: int) -> Counter[str]:
    """Instructions that a run executes, by mnemonic."""
    with tempfile.NamedTemporaryFile(mode="r") as log:
        command = [
            *emulator_command(PROCESSORS[level]),
            "-one-insn-per-tb",
            "-d",
            "exec,nochain,in_asm",
            "-D",
            log.name,
        ]
        subprocess.run([*command, str(program), str(panels)], check=True)
        return count(log)


def count(log: Iterable[str]) -> Counter[str]:
    """A line with an address and an instruction comes when it is first seen, one with "Trace" whenever it is run."""
    names: dict[str, str] = {}
    found: Counter[str] = Counter()
    for line in log:
        if line.startswith("0x"):
            address, _, rest = line.partition(":")
            words = rest.split()
            names[address] = words[1] if len(words) > 1 else "?"
        elif line.startswith("Trace"):
            at = line[line.index("[") + 1 :].split("/")[1].lstrip("0")
            found[names.get(f"0x{at.zfill(8)}", "?")] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-source", type=Path, help="folder of llama.cpp's sources")
    parser.add_argument("--formats", default="Q4_0,Q8_0,Q4_K")
    parser.add_argument("--levels", default=",".join(ATTRIBUTES))
    parser.add_argument("--tokens", default="1,16")
    parser.add_argument("--top", type=int, default=0, help="also list so many most frequent instructions")
    arguments = parser.parse_args()
    print("| format | level | tokens | ours | llama.cpp | ratio |\n|---|---|---|---|---|---|")
    for level in arguments.levels.split(","):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for fmt_name in arguments.formats.split(","):
                for tokens in map(int, arguments.tokens.split(",")):
                    fmt = FORMATS[fmt_name]
                    assert isinstance(fmt, BlockFormat)
                    nbytes = ROWS * COLUMNS // fmt.block * fmt.nbytes
                    programs = [build_ours(fmt, level, tokens, folder)]
                    kernel = PEER_KERNELS.get((fmt_name, level))
                    if arguments.peer_source and kernel:
                        programs.append(build_peer(arguments.peer_source, kernel, level, tokens, folder))
                    rates, tops = [], []
                    for program in programs:
                        more = executed(program, level, 8)
                        more.subtract(executed(program, level, 4))
                        rates.append(more.total() / nbytes / tokens)
                        tops.append(more.most_common(arguments.top))
                    ratio = f"{rates[0] / rates[1]:.2f}" if len(rates) > 1 else ""
                    theirs = f"{rates[1]:.3f}" if len(rates) > 1 else ""
                    print(f"| {fmt_name} | {level} | {tokens} | {rates[0]:.3f} | {theirs} | {ratio} |", flush=True)
                    for top in tops if arguments.top else []:
                        print("   ", ", ".join(f"{name} {n / nbytes / tokens:.3f}" for name, n in top))


if __name__ == "__main__":
    main()
