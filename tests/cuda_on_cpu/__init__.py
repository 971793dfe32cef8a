"""The kernels of csrc/cuda, run on the CPU. emulation.h says how."""
