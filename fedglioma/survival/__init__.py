"""Survival analysis of a clinical table."""
