"""Orchestration: the Prefect flow, its deployments and schedules, and the command line. No tensor is touched here."""
