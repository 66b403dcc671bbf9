"""Untrusted files, read exactly: checkpoints, configs, archives and tensors, from a disk or a hub."""
