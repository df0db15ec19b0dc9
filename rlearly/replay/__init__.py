"""Memory that agents learn from: replay buffers and rollouts."""
