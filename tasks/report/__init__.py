"""Stage 5: one page that says what was run, what came of it and what it cost."""
