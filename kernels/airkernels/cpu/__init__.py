"""CPU kernels: TVM programs built for one vector instruction set at a time."""
