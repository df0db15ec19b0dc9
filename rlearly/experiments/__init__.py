"""Many runs: studies, plans, launchers and reports."""
