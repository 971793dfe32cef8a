"""What setup.py works out about the native library: what is on this machine, and what is built with it.

tools.py finds torch and the C++ compiler, cuda.py what the CUDA kernels are built with, extension.py has the
sources and options of the library, decision.py puts it together.
"""
