"""What the coordinating centre runs."""
