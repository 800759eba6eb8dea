"""What a run is: the configuration schema and the presets."""
