"""GPU kernels, compiled ahead of time by Triton: one file per family, its numpy reference beside it in the tests.

Modules named here need Triton, except `layout`, which only says where things lie in device memory.
"""
