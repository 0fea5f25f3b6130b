"""Attacks on what leaves a federation, to measure how much of its patients it gives away."""
