"""Stage 4: what can be read back out of the recorded messages and of the released model."""
