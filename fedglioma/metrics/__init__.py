"""Measures of predictions, each with its definition."""
