"""Which runs, and what came of them: learning curves from run directories, results kept as CSV."""
