"""From a cohort on disk to batches of tensors."""
