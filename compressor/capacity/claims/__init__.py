"""The published claims about width, one registered function each, and how they are judged together."""
