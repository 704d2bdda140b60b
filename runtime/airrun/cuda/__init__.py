"""Replay on an NVIDIA GPU; needs cuda-bindings and a driver, and nothing of a compiler."""
