"""The GPU's part of a plan: the same graph, lowered to kernels of `airkernels.triton`."""
