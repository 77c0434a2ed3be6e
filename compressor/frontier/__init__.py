"""A frontier, not a point: networks of several sizes from one set of statistics, judged together."""
