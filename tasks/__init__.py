"""The work of a federated run, one package a stage. Nothing in here knows Prefect or DVC."""
