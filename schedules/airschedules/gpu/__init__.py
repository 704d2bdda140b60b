"""GPU kernels by description, and the configurations they are compiled in on each architecture."""
