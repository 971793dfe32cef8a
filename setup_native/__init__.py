"""How setup.py decides what to build of the native library.

tools.py finds torch and the C++ compiler, cuda.py finds the tools for the CUDA kernels, extension.py has the
sources and options of the library, and decision.py combines them.
"""
