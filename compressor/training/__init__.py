"""One training loop for recipes, recovery and capacity ladders. Floor 7."""
