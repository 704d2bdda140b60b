"""What is computed: block formats, CPU kernels as TVM programs, and their numpy references."""
