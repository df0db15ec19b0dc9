"""What a run is made of: settings, the override grammar, and how the two become one config."""
