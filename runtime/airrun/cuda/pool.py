"""The KV cache on the device: the blocks are handed out as on a processor, their contents lie elsewhere."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from airrun.cuda.driver import Device
from airrun.ledger import kv_nbytes
from airrun.plan.schema import KvCache
from airrun.replay.kv_cache import BlockPool, FreeList

if TYPE_CHECKING:
    from airrun.replay.memory import Bytes


class DevicePool(BlockPool):
    """Blocks in device memory; block i of cache l stands at `addresses[l] + i * its block_nbytes`. Caches that go round
    have `ring` blocks."""

    layout = "cuda"

    def __init__(self, spec: KvCache, n_blocks: int, n_ring_blocks: int, gpu: Device) -> None:
        self.spec, self._gpu = spec, gpu
        nbytes = kv_nbytes(spec, n_blocks, n_ring_blocks)
        base = gpu.allocate(nbytes)
        # what was never written takes part in products, with weight zero: it must be finite
        gpu.clear(base, nbytes)
        counts = [n_ring_blocks if layer.ring else n_blocks for layer in spec.layers]
        starts = [0, *accumulate(n * layer.block_nbytes for n, layer in zip(counts, spec.layers, strict=True))]
        self.addresses = [base + start for start in starts[:-1]]
        self.blocks, self.ring = FreeList(n_blocks), FreeList(n_ring_blocks)

    def contents(self, layer: int, block: int) -> Bytes:
        """A copy of one block of one cache."""
        nbytes = self.spec.layers[layer].block_nbytes
        data = np.empty(nbytes, np.uint8)
        self._gpu.use()
        self._gpu.download(data.ctypes.data, self.addresses[layer] + block * nbytes, nbytes)
        self._gpu.synchronize()
        return data

    def write(self, layer: int, block: int, data: Bytes) -> None:
        """Replace one block of one cache."""
        data = np.ascontiguousarray(data)
        self._gpu.use()
        self._gpu.upload(self.addresses[layer] + block * data.nbytes, data.ctypes.data, data.nbytes)
        self._gpu.synchronize()
