"""Weights: in memory, or read while they are used."""
