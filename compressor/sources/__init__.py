"""What a user names -> model and data. Floor 3."""
