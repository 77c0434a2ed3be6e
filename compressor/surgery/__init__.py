"""Plans carried out on a copy: fold, refit, slice."""
