"""Stage 3: what is released, and how good it is for everyone."""
