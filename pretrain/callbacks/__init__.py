"""What happens around the training step: checkpoints, speed, baselines, pictures, the summary."""
