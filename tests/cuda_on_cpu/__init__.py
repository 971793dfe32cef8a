"""The CUDA kernels, run on the CPU. emulation.h says how."""
