"""The settings of a run: schema, `key=value` overrides, presets, and `--help`."""
