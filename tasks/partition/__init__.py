"""Stage 1: a dataset, split over clients."""
