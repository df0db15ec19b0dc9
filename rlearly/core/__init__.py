"""What every other folder uses: the shared types, observations, nested states and errors."""
