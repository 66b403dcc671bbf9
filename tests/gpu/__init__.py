"""What only an accelerator can show; skips cleanly without one."""
