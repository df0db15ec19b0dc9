"""SnapshotRL: episodes that start at states along a teacher's trajectories."""
