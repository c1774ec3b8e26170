"""What can be known of a config and its data before the first iteration, checked in seconds."""
