"""After the stages: whether the released model becomes the champion of MLflow's model registry."""
