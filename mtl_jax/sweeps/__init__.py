"""Sweeps: searches of configurations, and the Pareto front of the tasks."""
