"""Reading runs and sweeps: statistics, figures, tables and pages."""
