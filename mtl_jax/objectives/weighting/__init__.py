"""Loss weighting: one number from K losses, whose gradient is the update. Class L."""
