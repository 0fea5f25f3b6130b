"""Checked settings: what a site decides, what the coordinator decides."""
