"""Turns client jobs into results: stacked, spread over workers, repeatable to the last bit. Knows no method."""
