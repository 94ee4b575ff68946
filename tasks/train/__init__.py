"""Stage 2: federated training. Methods know mathematics, the engine knows machines."""
