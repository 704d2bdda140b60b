"""Readers of model files: an untrusted file becomes checked metadata and tensor locations, never arrays."""
