"""Networks, layers, optimizers and schedules. Nothing here knows a loss."""
