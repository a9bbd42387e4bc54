"""What the package reaches beside its rivals, what it costs, and where it fails."""
