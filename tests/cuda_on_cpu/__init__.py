"""The CUDA kernels, run on the CPU. See emulation.h."""
