"""Programs bound to a device: every launch with its function, its addresses, and the rule of its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airrun.cuda.driver import Arguments, CudaError, Device, Function
from airrun.errors import PlanError
from airrun.plan.container import LoadedPlan
from airrun.plan.device import AXES, DeviceLibrary, DevicePlan, Extent, Launch, matrix_uses
from airrun.plan.schema import Operand

Addresses = Mapping[str, Sequence[int]]
"""Address of every entry of every operand space."""


@dataclass(frozen=True)
class Kernel:
    """A loaded kernel and what its programs cover."""

    function: Function
    tiles: tuple[int, ...]


def select_library(device: DevicePlan, arch: str) -> DeviceLibrary:
    """The plan's machine code for an architecture; code for an older GPU of the same generation runs too.

    Raises
    ------
    PlanError
        There is none; names those that there are.
    """
    fitting = [library for library in device.libraries if library.backend == "cuda" and _runs_on(library.arch, arch)]
    if not fitting:
        known = ", ".join(library.arch for library in device.libraries)
        raise PlanError(
            f"this GPU is {arch}, the plan has code for {known}; build it for this one, or use --device cpu"
        )
    return max(fitting, key=lambda library: int(library.arch[3:]))


def _runs_on(arch: str, gpu: str) -> bool:
    """Whether machine code of an architecture runs on a GPU: same major version, no newer minor one."""
    if not (arch.startswith("sm_") and gpu.startswith("sm_")):
        return False
    code, here = int(arch[3:]), int(gpu[3:])
    # code for Hopper is for that architecture alone
    return code == here or (code // 10 == here // 10 == 8 and code <= here)


def load_kernels(gpu: Device, loaded: LoadedPlan, library: DeviceLibrary) -> list[Kernel]:
    """Load every kernel of a library."""
    code = loaded.segment(library.segment)
    kernels = []
    for binary in library.binaries:
        module = gpu.load(code[binary.offset : binary.offset + binary.nbytes])
        function = gpu.function(module, binary.entry, binary.threads, binary.shared_nbytes, binary.pdl)
        kernels.append(Kernel(function, binary.tiles))
    return kernels


def prepare(gpu: Device, kernels: Sequence[Kernel]) -> None:
    """Bring the code of every kernel to the device, which otherwise happens when it is first started."""
    for kernel in kernels:
        gpu.prepare(kernel.function)


class BoundProgram:
    """A program's launches with real addresses.

    Attributes
    ----------
    steps
        The plan's launches, for labels and phases.
    uses
        Which of them read which matrix.
    """

    def __init__(self, gpu: Device, steps: Sequence[Launch], kernels: Sequence[Kernel], addresses: Addresses) -> None:
        self.steps, self.uses, self._gpu = steps, matrix_uses(steps), gpu
        self._kernels = [kernels[step.kernel] for step in steps]
        self._arguments = [
            Arguments([_address(addresses, operand) for operand in step.operands], [0] * len(step.integers))
            for step in steps
        ]
        self.first_after_embed = sum(step.phase == "embed" for step in steps)
        self.first_head = len(steps) - sum(step.phase == "head" for step in steps)

    def launch(
        self, n_tokens: int, n_outputs: int, first: int = 0, last: int | None = None, *, apart: bool = False
    ) -> None:
        """Start steps [first, last) in stream order; `apart`: the first one not before all in front of it has ended.

        Raises
        ------
        CudaError
            Names the step that could not be started; on a `careful` device also one that failed.
        """
        counts = {"fixed": 1, "tokens": n_tokens, "outputs": n_outputs}
        for i in range(first, len(self.steps) if last is None else last):
            step, kernel, arguments = self.steps[i], self._kernels[i], self._arguments[i]
            for j, name in enumerate(step.integers):
                arguments.integers[j] = counts[name]
            try:
                grid = _grid(step.extents, kernel.tiles, counts)
                self._gpu.launch(kernel.function, grid, arguments, apart=apart and i == first)
                if self._gpu.careful:
                    self._gpu.synchronize()
            except CudaError as error:
                message = f"step {step.label} (layer {step.layer}): {error}"
                self._gpu.failed = self._gpu.failed and message
                raise CudaError(message) from None


def _address(addresses: Addresses, operand: Operand) -> int:
    return 0 if operand.space == "none" else addresses[operand.space][operand.index] + operand.offset


def _grid(extents: Sequence[Extent], tiles: Sequence[int], counts: Mapping[str, int]) -> tuple[int, ...]:
    programs = [1] * AXES
    for extent, tile in zip(extents, tiles, strict=True):
        programs[extent.axis] *= -(-extent.n * counts[extent.count] // tile)
    return tuple(programs)
