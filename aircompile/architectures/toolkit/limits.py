"""Bounds of hyperparameters: far above what real models have, and low enough that products of two fit 64 bits."""

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 16
MAX_VOCAB = 1 << 24
MAX_CONTEXT = (1 << 31) - 1
