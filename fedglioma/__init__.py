"""Federated multi-site training on glioma MRI: the library that server and client stand on."""
