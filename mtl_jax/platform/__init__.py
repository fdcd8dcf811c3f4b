"""Processes, devices, files and buckets: the lowest layer, which imports no other."""
