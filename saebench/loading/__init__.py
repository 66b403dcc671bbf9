"""Reading what others wrote: checkpoints in archives, configs and tensors, from a disk or a hub."""
