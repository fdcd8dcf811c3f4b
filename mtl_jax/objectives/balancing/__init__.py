"""Gradient balancing: one update of K task gradients, most often from their Gram matrix."""
