"""The one training loop and the one inference loop."""
