"""Kernels, linear layers, the allocator and machine speed: the bottom floor."""
