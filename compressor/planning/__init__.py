"""From statistics to a plan: paths, allocation, search, and what is certified exactly."""
