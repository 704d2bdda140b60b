"""The one table of GGML block formats: type id, elements per block, bytes per block.

Every size in this product (tensor sizes in the reader, row strides in kernels, bytes in the ledger) derives from it.
Ids 4, 5, 31-33 and 36-38 belonged to formats that ggml removed; no file may use them.

Source: ``enum ggml_type`` and the ``block_*`` structures of ggml; the sizes below are written as
scales + quants so that they can be read against those structures.
"""

from __future__ import annotations

from airrun.records import record


@record
class BlockType:
    """One storage format of tensor elements.

    Attributes
    ----------
    id : int
        ``ggml_type`` as stored in GGUF files.
    name : str
        Canonical upper-case name, with the capital K of the k-quants (``Q4_K``).
    block : int
        Elements per block; a row holds a whole number of blocks.
    nbytes : int
        Bytes per block.
    """

    id: int
    name: str
    block: int
    nbytes: int

    @property
    def quantized(self) -> bool:
        """Whether elements are packed in blocks of more than one."""
        return self.block > 1

    def row_bytes(self, n_elements: int) -> int:
        """Bytes of a row of `n_elements`; ValueError where it is not a whole number of blocks."""
        blocks, rest = divmod(n_elements, self.block)
        if rest:
            raise ValueError(f"{n_elements} elements are not a whole number of {self.name} blocks of {self.block}")
        return blocks * self.nbytes


_TABLE = (
    BlockType(0, "F32", 1, 4),
    BlockType(1, "F16", 1, 2),
    BlockType(2, "Q4_0", 32, 2 + 16),
    BlockType(3, "Q4_1", 32, 2 + 2 + 16),
    BlockType(6, "Q5_0", 32, 2 + 4 + 16),
    BlockType(7, "Q5_1", 32, 2 + 2 + 4 + 16),
    BlockType(8, "Q8_0", 32, 2 + 32),
    # ggml itself stores two halves (36 bytes) since 2024, the gguf package still says two floats. The type holds
    # activations and no file carries it; the package is followed so that the two tables can be compared in full.
    BlockType(9, "Q8_1", 32, 4 + 4 + 32),
    BlockType(10, "Q2_K", 256, 16 + 64 + 2 + 2),
    BlockType(11, "Q3_K", 256, 32 + 64 + 12 + 2),
    BlockType(12, "Q4_K", 256, 2 + 2 + 12 + 128),
    BlockType(13, "Q5_K", 256, 2 + 2 + 12 + 32 + 128),
    BlockType(14, "Q6_K", 256, 128 + 64 + 16 + 2),
    BlockType(15, "Q8_K", 256, 4 + 256 + 32),
    BlockType(16, "IQ2_XXS", 256, 2 + 64),
    BlockType(17, "IQ2_XS", 256, 2 + 64 + 8),
    BlockType(18, "IQ3_XXS", 256, 2 + 64 + 32),
    BlockType(19, "IQ1_S", 256, 2 + 32 + 16),
    BlockType(20, "IQ4_NL", 32, 2 + 16),
    BlockType(21, "IQ3_S", 256, 2 + 64 + 8 + 32 + 4),
    BlockType(22, "IQ2_S", 256, 2 + 64 + 8 + 8),
    BlockType(23, "IQ4_XS", 256, 2 + 2 + 4 + 128),
    BlockType(24, "I8", 1, 1),
    BlockType(25, "I16", 1, 2),
    BlockType(26, "I32", 1, 4),
    BlockType(27, "I64", 1, 8),
    BlockType(28, "F64", 1, 8),
    BlockType(29, "IQ1_M", 256, 32 + 16 + 8),
    BlockType(30, "BF16", 1, 2),
    BlockType(34, "TQ1_0", 256, 48 + 4 + 2),
    BlockType(35, "TQ2_0", 256, 64 + 2),
    BlockType(39, "MXFP4", 32, 1 + 16),
    BlockType(40, "NVFP4", 64, 4 + 32),
    BlockType(41, "Q1_0", 128, 2 + 16),
    BlockType(42, "Q2_0", 64, 2 + 16),
)

BLOCKS: dict[str, BlockType] = {entry.name: entry for entry in _TABLE}
BY_ID: dict[int, BlockType] = {entry.id: entry for entry in _TABLE}
